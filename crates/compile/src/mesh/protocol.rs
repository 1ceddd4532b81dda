//! What is spoken on a port, as declared: `appProtocol` first, then the name of the port, as Istio reads them.

use crate::snapshot::Speaks;

/// What somebody has declared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Declared {
    /// HTTP/1.1, or whatever clients choose.
    Http,
    /// HTTP/2 from the first byte: gRPC, h2c.
    Http2,
    /// TLS of the application.
    Tls,
    /// Bytes that are not HTTP.
    Tcp,
    #[default]
    Nothing,
}

impl Declared {
    /// An `appProtocol` of another party's (`example.com/x`) and an unknown name declare nothing.
    pub(crate) fn of(app_protocol: Option<&str>, port_name: Option<&str>) -> Self {
        let app = app_protocol.map(str::to_ascii_lowercase).unwrap_or_default();
        let app = word(app.strip_prefix("kubernetes.io/").unwrap_or(&app));
        if app != Declared::Nothing {
            return app;
        }
        let name = port_name.map(str::to_ascii_lowercase).unwrap_or_default();
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Declared::Http;
        }
        word(name.split('-').next().unwrap_or_default())
    }

    pub(crate) fn speaks(self) -> Speaks {
        match self {
            Declared::Http | Declared::Http2 => Speaks::Http,
            Declared::Tls | Declared::Tcp => Speaks::Tcp,
            Declared::Nothing => Speaks::Undeclared,
        }
    }
}

fn word(word: &str) -> Declared {
    match word {
        "http" | "ws" | "grpc-web" => Declared::Http,
        "http2" | "h2c" | "grpc" => Declared::Http2,
        "https" | "tls" | "wss" => Declared::Tls,
        "tcp" | "amqp" | "cassandra" | "ftp" | "imap" | "kafka" | "ldap" | "memcached" | "mongo" | "mongodb"
        | "mqtt" | "mssql" | "mysql" | "nats" | "oracle" | "pop3" | "postgres" | "postgresql" | "redis" | "smtp"
        | "ssh" | "zookeeper" => Declared::Tcp,
        _ => Declared::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_declared_before_it_is_guessed() {
        use Declared::*;
        let cases = [
            (Some("http"), None, Http),
            (Some("kubernetes.io/h2c"), Some("http"), Http2),
            (Some("HTTPS"), None, Tls),
            (Some("kubernetes.io/wss"), None, Tls),
            (Some("example.com/own"), Some("http-web"), Http),
            (None, Some("http"), Http),
            (None, Some("http2"), Http2),
            (None, Some("grpc-api"), Http2),
            (None, Some("grpc-web-api"), Http),
            (None, Some("mysql"), Tcp),
            (None, Some("tls-db"), Tls),
            (None, Some("httpish"), Nothing),
            (None, Some("web"), Nothing),
            (None, None, Nothing),
        ];
        for (app, name, wanted) in cases {
            assert_eq!(Declared::of(app, name), wanted, "{app:?} {name:?}");
        }
    }
}
