//! What a pull tells while it works. The library draws nothing; the command line turns these calls into a bar.

/// Receives the progress of one [`pull`](crate::pull). All calls come from the thread that called `pull`.
///
/// Between `started` and `finished`, the sum of `advanced` minus the sum of `rewound` is the number of bytes in place.
pub trait Progress {
    /// A source begins: `what` names it, `total_bytes` is what it will bring, where known. Called again if the pull
    /// goes on to another source; the count then begins at 0.
    fn started(&self, what: &str, total_bytes: Option<u64>);
    /// `bytes` more are in place (downloaded now, or found from an earlier pull that was cut off).
    fn advanced(&self, bytes: u64);
    /// `bytes` that were counted have to be fetched again.
    fn rewound(&self, _bytes: u64) {}
    /// One line a person may want to read: the file being fetched, a retry, a wait for another process.
    fn message(&self, _text: &str) {}
    /// The source is done, with success or without.
    fn finished(&self) {}
    /// Asked several times a second. `true` ends the pull with [`HubError::Cancelled`](crate::HubError::Cancelled); what
    /// was downloaded stays for the next pull to resume.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No progress wanted.
impl Progress for () {
    fn started(&self, _what: &str, _total_bytes: Option<u64>) {}
    fn advanced(&self, _bytes: u64) {}
}
