//! Memory that only the start needed.
//!
//! The start runs through configuration, certificates and compiling all over the program, and the kernel maps 64 KiB around each
//! page that is touched. Those pages of code and constants are in memory once for all processes of a host, but are counted
//! as resident (RSS) in each, and as in use, which keeps the kernel from dropping them when memory is short. So they are given back
//! after the start, and from time to time, as each change of the configuration runs through it all again. What serving needs is
//! mapped again on its next use, from the page cache.
//!
//! Why the `unsafe` here is sound: `MADV_DONTNEED` on a private mapping of a file makes the next access read the file's bytes again
//! (madvise(2)), so that it changes nothing for pages that still hold these bytes. That is so where the mapping cannot be
//! written and the kernel counts no anonymous page in it: a page that has been written through a private mapping, such as one
//! that was relocated before it was made read-only, is anonymous. Nobody makes such a mapping writable later: the dynamic loader has
//! done its work before `main`, and nothing here loads libraries.

use rustix::mm::{Advice, madvise};
use std::{ffi::c_void, fs, io, ptr, time::Duration};

/// From being ready to giving back for the first time.
const SETTLED: Duration = Duration::from_secs(2);
/// Each wait is so many times as long as the one before, as what belongs to the start does not end with being ready: the first
/// connections to the control plane and to backends, and all there is to know.
const RARER: u32 = 2;
/// The longest wait. The kernel maps four times what serving uses, and more with all that happens now and then; to have that gone
/// twice a minute costs a millisecond or two for the map and some hundred faults of a microsecond or two: 0.01 % of a core.
const RAREST: Duration = Duration::from_secs(30);

/// Gives back for as long as it is polled; for the control runtime, as reading the process's own map takes milliseconds.
pub async fn give_back() {
    let mut wait = SETTLED;
    loop {
        tokio::time::sleep(wait).await;
        wait = (wait * RARER).min(RAREST);
        // Without it only more memory is taken.
        if let Err(error) = once() {
            tracing::debug!(%error, "code that is not in use could not be given back");
        }
    }
}

fn once() -> io::Result<()> {
    for part in unchanged(&fs::read_to_string("/proc/self/smaps")?) {
        let from = ptr::with_exposed_provenance_mut::<c_void>(part.from);
        // SAFETY: see above; `unchanged` has picked what cannot be written and holds the bytes of its file.
        unsafe { madvise(from, part.length, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Part {
    from: usize,
    length: usize,
}

/// Mappings of files in `smaps` (proc_pid_smaps(5)) that cannot be written, and never were.
fn unchanged(smaps: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            candidate = mapping(first, words);
        } else if first == "Anonymous:"
            && let Some(part) = candidate.take()
            && words.next() == Some("0")
        {
            parts.push(part);
        }
    }
    parts
}

/// Of the line that begins a mapping, as `7f01c000-7f02c000 r-xp 00001000 fe:00 1234 /usr/lib/libc.so.6`.
fn mapping<'a>(range: &str, mut words: impl Iterator<Item = &'a str>) -> Option<Part> {
    let (from, to) = range.split_once('-')?;
    let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
    let rights = words.next()?;
    let file = words.nth(3)?;
    let private = matches!(rights, "r-xp" | "r--p");
    (private && file.starts_with('/')).then(|| Some(Part { from, length: to.checked_sub(from)? }))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_given_back() {
        let smaps = "\
5600000-5601000 r--p 00000000 fe:00 12   /usr/bin/selvedge
Size:                  4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
5601000-5603000 r-xp 00001000 fe:00 12   /usr/bin/selvedge
Anonymous:             0 kB
5603000-5604000 r--p 00003000 fe:00 12   /usr/bin/selvedge
Anonymous:             4 kB
5604000-5605000 rw-p 00004000 fe:00 12   /usr/bin/selvedge
Anonymous:             0 kB
5605000-5606000 r--s 00004000 fe:00 12   /run/shared
Anonymous:             0 kB
5606000-5607000 r--p 00000000 00:00 0
Anonymous:             0 kB
ffff000-ffff100 r-xp 00000000 00:00 0    [vdso]
Anonymous:             0 kB
";
        let part = |from, length| Part { from, length };
        assert_eq!(unchanged(smaps), [part(0x560_0000, 0x1000), part(0x560_1000, 0x2000)]);
    }

    /// The code of this test is among it, and runs on.
    #[test]
    fn the_program_runs_on_without_it() {
        let map = fs::read_to_string("/proc/self/smaps").expect("the map of this process");
        assert!(!unchanged(&map).is_empty(), "{map}");
        for _ in 0..3 {
            once().expect("the kernel takes it");
        }
    }
}
