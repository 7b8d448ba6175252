//! Enough file handles for a connection to each rank.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What this process's limit on open files should become for `wanted` of them; nothing where it is enough.
fn raised(limit: &Rlimit, wanted: u64) -> Option<Rlimit> {
    let enough = limit.current.is_none_or(|current| current >= wanted);
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let more = limit.current.is_some_and(|now| now < current);
    (!enough && more).then_some(Rlimit { current: Some(current), maximum: limit.maximum })
}

/// Raises the soft limit on open files where `wanted` of them need it, as far as the hard one allows; what is missing then is said.
pub(crate) fn make_room(wanted: u64) {
    if let Some(raised) = raised(&getrlimit(Resource::Nofile), wanted)
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::debug!(%error, "the limit on open files stays");
    }
    if let Some(current) = getrlimit(Resource::Nofile).current.filter(|current| *current < wanted) {
        tracing::warn!(
            "launch may have {current} files open; {wanted} may be needed for so many ranks\nhint: `ulimit -n {wanted}` before launch, or --ulimit nofile={wanted} for a container"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_as_far_as_needed_and_allowed() {
        let limit = |current, maximum| Rlimit { current, maximum };
        let cases = [
            (limit(Some(1024), Some(20_000)), Some(9000)),
            (limit(Some(1024), Some(4096)), Some(4096)),
            (limit(Some(1024), None), Some(9000)),
            (limit(Some(4096), Some(4096)), None),
            (limit(Some(9000), Some(20_000)), None),
            (limit(None, None), None),
        ];
        for (before, expected) in cases {
            let after = raised(&before, 9000);
            assert_eq!(after.as_ref().and_then(|after| after.current), expected, "{before:?}");
            assert!(after.is_none_or(|after| after.maximum == before.maximum));
        }
    }
}
