//! Why a request ended as it did: Envoy's response flags, as a set.

use std::fmt;

/// A set of response flags. The letters are those of Envoy's `%RESPONSE_FLAGS%`, so that dashboards carry over.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u32);

macro_rules! flags {
    ($($bit:literal $name:ident $short:literal $long:literal $help:literal,)*) => {
        impl Flags {
            $(#[doc = $help] pub const $name: Flags = Flags(1 << $bit);)*

            /// Every flag: itself, its letters, its long name and its meaning. The position is the bit.
            pub const ALL: &'static [(Flags, &'static str, &'static str, &'static str)] = &[
                $((Flags::$name, $short, $long, $help),)*
            ];
        }
    };
}

flags! {
    0 NO_HEALTHY_UPSTREAM "UH" "NoHealthyUpstream" "No healthy endpoint in the cluster.",
    1 UPSTREAM_CONNECT_FAILURE "UF" "UpstreamConnectionFailure" "The connection to the endpoint could not be made.",
    2 UPSTREAM_OVERFLOW "UO" "UpstreamOverflow" "A circuit breaker of the cluster is open.",
    3 NO_ROUTE "NR" "NoRouteFound" "No route matches, or the connection fits no listener.",
    4 RETRIES_EXCEEDED "URX" "UpstreamRetryLimitExceeded" "Every allowed try failed.",
    5 NO_CLUSTER "NC" "NoClusterFound" "The route's backend reference does not resolve.",
    6 DURATION_TIMEOUT "DT" "DurationTimeout" "The connection or request lived longer than allowed.",
    7 DOWNSTREAM_CLOSED "DC" "DownstreamConnectionTermination" "The client went away.",
    8 LOCAL_HEALTH_FAIL "LH" "FailedLocalHealthCheck" "Selvedge itself is failing its health check.",
    9 UPSTREAM_TIMEOUT "UT" "UpstreamRequestTimeout" "The upstream did not answer in time.",
    10 LOCAL_RESET "LR" "LocalReset" "Selvedge reset the upstream stream.",
    11 UPSTREAM_RESET "UR" "UpstreamRemoteReset" "The upstream reset the stream.",
    12 UPSTREAM_CLOSED "UC" "UpstreamConnectionTermination" "The upstream closed the connection.",
    13 DELAY_INJECTED "DI" "DelayInjected" "A fault policy delayed the request.",
    14 FAULT_INJECTED "FI" "FaultInjected" "A fault policy aborted the request.",
    15 RATE_LIMITED "RL" "RateLimited" "A rate limit refused the request.",
    16 UNAUTHORIZED "UAEX" "UnauthorizedExternalService" "An authorization policy refused the request.",
    17 INVALID_HEADER "IH" "InvalidEnvoyRequestHeaders" "A header that steers the proxy has an invalid value.",
    18 STREAM_IDLE "SI" "StreamIdleTimeout" "No byte moved for the stream idle timeout.",
    19 DOWNSTREAM_PROTOCOL "DPE" "DownstreamProtocolError" "The client broke its protocol.",
    20 UPSTREAM_PROTOCOL "UPE" "UpstreamProtocolError" "The upstream broke its protocol.",
    21 OVERLOAD "OM" "OverloadManagerTerminated" "Shed because of overload.",
    22 DNS_FAILED "DF" "DnsResolutionFailed" "The upstream's name could not be resolved.",
    23 DOWNSTREAM_RESET "DR" "DownstreamRemoteReset" "The client reset its stream.",
    24 TOO_LARGE "TL" "TooLarge" "A body or header block was over its limit.",
    25 CLEAR_TEXT "CT" "ClearTextRefused" "A connection in clear text was refused where mutual TLS is demanded.",
    26 OWN_TLS "OT" "OwnTlsUnusable" "Our own certificate or TLS settings towards the upstream cannot be used.",
}

impl Flags {
    pub const NONE: Flags = Flags(0);

    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The flags of this set, each with its letters, long name and meaning.
    pub fn iter(self) -> impl Iterator<Item = &'static (Flags, &'static str, &'static str, &'static str)> {
        Self::ALL.iter().filter(move |(flag, ..)| self.contains(*flag))
    }

    /// Long names (`%RESPONSE_FLAGS_LONG%`), comma separated; `-` when there are none.
    pub fn long(self) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        self.iter().map(|(_, _, long, _)| *long).collect::<Vec<_>>().join(",")
    }
}

impl std::ops::BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

/// Letters, comma separated; `-` when there are none.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (i, (_, short, ..)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(short)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_joined_in_table_order_and_each_bit_is_its_position() {
        let flags = Flags::UPSTREAM_TIMEOUT | Flags::NO_HEALTHY_UPSTREAM;
        assert_eq!(flags.to_string(), "UH,UT");
        assert_eq!(flags.long(), "NoHealthyUpstream,UpstreamRequestTimeout");
        assert_eq!(Flags::NONE.to_string(), "-");
        for (bit, (flag, ..)) in Flags::ALL.iter().enumerate() {
            assert_eq!(flag.bits(), 1 << bit);
        }
    }
}
