//! Memory of this process, as Linux tells it.

/// The most that was resident so far, in bytes (`VmHWM` of `proc_pid_status(5)`); `None` where nobody tells.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    parse_peak(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_peak(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_found_among_the_other_lines() {
        assert_eq!(parse_peak("VmPeak:\t  9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 7 kB\n"), Some(1234 * 1024));
        assert_eq!(parse_peak("VmPeak:\t  9 kB\n"), None);
        assert_eq!(parse_peak("VmHWM:\t 1234 pages\n"), None);
    }
}
