//! How near endpoints are.

use super::members::Members;
use std::net::IpAddr;

/// Where a caller is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Locality<'l> {
    pub(crate) zone: Option<&'l str>,
    pub(crate) region: Option<&'l str>,
}

impl Locality<'_> {
    /// 0 is the own zone, 1 the own region, 2 the rest; all the same for a caller that does not know where it is.
    pub(crate) fn priority(self, zone: Option<&str>, region: Option<&str>) -> u8 {
        if self.zone.is_none() && self.region.is_none() {
            return 0;
        }
        let same = |own: Option<&str>, other: Option<&str>| own.is_some() && own == other;
        match (same(self.zone, zone), same(self.region, region)) {
            (true, _) => 0,
            // Who does not know its own zone is as near to all zones of its region.
            (false, true) if self.zone.is_none() => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    }
}

/// Region of an address: that of the Workload there.
pub(crate) fn region<'a>(members: &Members<'a>, ip: IpAddr) -> Option<&'a str> {
    members.at(ip).and_then(|workload| workload.spec.region.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_zone_is_nearest_then_the_own_region() {
        let here = Locality { zone: Some("a"), region: Some("eu") };
        assert_eq!(here.priority(Some("a"), None), 0);
        assert_eq!(here.priority(Some("b"), Some("eu")), 1);
        assert_eq!(here.priority(Some("b"), Some("us")), 2);
        assert_eq!(here.priority(None, None), 2);
        assert_eq!(Locality::default().priority(Some("a"), Some("eu")), 0);
        let region = Locality { zone: None, region: Some("eu") };
        assert_eq!(region.priority(Some("a"), Some("eu")), 0);
        assert_eq!(region.priority(Some("a"), Some("us")), 2);
    }
}
