//! Order, resumption from every byte, panics, stops, retries, disks that are full, and files of others.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

/// What becomes of a record that is special, and of how many were asked before it.
type Special<'a> = dyn Fn(u64, u64, &Control<'_>) -> Option<Outcome> + Sync + 'a;

/// Answers a number with its line, after a time that differs from number to number.
struct Doubling<'a> {
    asked: AtomicU64,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    special: Box<Special<'a>>,
}

impl<'a> Doubling<'a> {
    fn new() -> Self {
        Self::with(|_, _, _| None)
    }

    /// `special` is given a record and how many were asked before it.
    fn with(special: impl Fn(u64, u64, &Control<'_>) -> Option<Outcome> + Sync + 'a) -> Self {
        let zero = AtomicUsize::new;
        let special = Box::new(special);
        Self { asked: AtomicU64::new(0), at_once: zero(0), most_at_once: zero(0), special }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn line(record: u64) -> String {
    format!("{{\"index\":{record},\"double\":{}}}", 2 * record)
}

impl Answerer<u64> for Doubling<'_> {
    fn answer(&self, &record: &u64, control: &Control<'_>) -> Outcome {
        let before = self.asked.fetch_add(1, Ordering::SeqCst);
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let outcome = (self.special)(record, before, control);
        if outcome.is_none() {
            std::thread::sleep(Duration::from_micros(record * 7919 % 400));
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        outcome.unwrap_or_else(|| Outcome::Line(line(record)))
    }

    fn panicked(&self, &record: &u64, message: &str) -> String {
        format!("{{\"index\":{record},\"error\":{message:?}}}")
    }
}

/// Has the record that ends a run wait until all before it are begun: one that a thread has taken and not yet begun is
/// rightly given up, and has no line.
#[derive(Default)]
struct Begun(AtomicU64);

impl Begun {
    /// Notes that `record` is begun; returns, for the `last`, when all before it are.
    fn note(&self, record: u64, last: u64) {
        if record < last {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        while record == last && self.0.load(Ordering::SeqCst) < last {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Checks that lines come in order.
#[derive(Default)]
struct Watch {
    seen: Vec<String>,
}

impl Observer for Watch {
    fn line(&mut self, idx: u64, line: &str) -> Result<(), String> {
        if idx != self.seen.len() as u64 || !line.starts_with(&format!("{{\"index\":{idx},")) {
            return Err(format!("is {line:?}, which is not that of record {idx}"));
        }
        self.seen.push(line.to_owned());
        Ok(())
    }

    fn is_failure(&self, line: &str) -> bool {
        line.contains("error")
    }
}

struct Bench {
    folder: tempfile::TempDir,
    stop: AtomicBool,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), stop: AtomicBool::new(false) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("out.jsonl")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn options(&self) -> RunOptions<'_> {
        let retry = RetryPolicy {
            first_wait: Duration::from_millis(2),
            max_wait: Duration::from_millis(10),
            patience: Duration::from_millis(60),
        };
        RunOptions { concurrency: 5, first_alone: false, retry, stop: &self.stop }
    }

    fn open(&self, start: Start) -> Result<(Output, Watch), RecordsError> {
        let mut watch = Watch::default();
        let output = Output::open(&self.path(), &terms(), start, &mut watch)?;
        Ok((output, watch))
    }

    fn run(&self, num: u64, answerer: &Doubling<'_>, start: Start) -> Result<RunReport, RecordsError> {
        let (mut output, mut watch) = self.open(start)?;
        let report = run(&mut (0..num).map(Ok), answerer, &mut output, &self.options(), &mut watch)?;
        assert_eq!(watch.seen.len() as u64, output.num_lines());
        Ok(report)
    }
}

fn terms() -> Terms {
    Terms::new().with("input", "numbers").with("prompt", "double")
}

fn lines(num: u64) -> String {
    (0..num).map(|record| line(record) + "\n").collect()
}

#[test]
fn lines_are_in_order_and_the_window_is_bounded() {
    let bench = Bench::new();
    let answerer = Doubling::new();
    let report = bench.run(300, &answerer, Start::Resume).unwrap();
    assert_eq!(report, RunReport { ended: Ended::Complete, num_skipped: 0, num_written: 300 });
    assert_eq!(bench.text(), lines(300));
    assert_eq!(answerer.most_at_once.load(Ordering::SeqCst), 5);
    // A finished one has nothing to do.
    let report = bench.run(300, &answerer, Start::Resume).unwrap();
    assert_eq!((report.ended, report.num_skipped, report.num_written), (Ended::Complete, 300, 0));
    assert_eq!(answerer.asked(), 300);

    // The first record holds all others up: no more than the window is read.
    let (bench, num_read) = (Bench::new(), AtomicU64::new(0));
    let most_read = AtomicU64::new(0);
    let slow = Doubling::with(|record, _, _| {
        (record == 0).then(|| {
            std::thread::sleep(Duration::from_millis(60));
            most_read.store(num_read.load(Ordering::SeqCst), Ordering::SeqCst);
            Outcome::Line(line(0))
        })
    });
    let (mut output, mut watch) = bench.open(Start::Resume).unwrap();
    let mut records = (0..200).map(|record| {
        num_read.fetch_add(1, Ordering::SeqCst);
        Ok(record)
    });
    run(&mut records, &slow, &mut output, &bench.options(), &mut watch).unwrap();
    assert_eq!((bench.text(), most_read.load(Ordering::SeqCst)), (lines(200), 20));
}

#[test]
fn it_goes_on_from_every_byte_that_a_kill_may_leave() {
    const NUM: u64 = 12;
    let whole = lines(NUM);
    for cut in 0..=whole.len() {
        let bench = Bench::new();
        drop(bench.open(Start::Resume).unwrap());
        fs::write(bench.path(), &whole[..cut]).unwrap();
        let answerer = Doubling::new();
        let report = bench.run(NUM, &answerer, Start::Resume).unwrap();
        assert_eq!(bench.text(), whole, "cut at {cut}");
        let kept = whole[..cut].matches('\n').count() as u64;
        assert_eq!((report.num_skipped, answerer.asked()), (kept, NUM - kept));
        assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 2, "output and terms");
    }
}

#[test]
fn what_a_lost_block_leaves_is_cut_off_and_what_others_wrote_is_refused() {
    let bench = Bench::new();
    drop(bench.open(Start::Resume).unwrap());
    for torn in
        ["\0\0\0\0", "\0\0{\"index\":2}\n\0\n", "{\"index\":2,\"dou\n", "{\"index\":2,\0\n{\"index\":3}\n"]
    {
        fs::write(bench.path(), lines(2) + torn).unwrap();
        bench.run(9, &Doubling::new(), Start::Resume).unwrap();
        assert_eq!(bench.text(), lines(9), "{torn:?}");
    }
    for wrong in ["no json\n", "{\"index\":5,\"x\":0}\n", "\n"] {
        let text = lines(2) + wrong + &line(3) + "\n";
        fs::write(bench.path(), &text).unwrap();
        let error = bench.run(9, &Doubling::new(), Start::Resume).unwrap_err();
        assert!(matches!(error, RecordsError::Damaged { number: 3, .. }), "{error}");
        assert_eq!(bench.text(), text);
    }
}

#[test]
fn only_the_same_terms_go_on() {
    let bench = Bench::new();
    bench.run(3, &Doubling::new(), Start::Resume).unwrap();
    let other = Terms::new().with("input", "numbers").with("prompt", "x".repeat(500)).with("seed", 3);
    let open = |terms: &Terms, start| Output::open(&bench.path(), terms, start, &mut Watch::default());
    let error = open(&other, Start::Resume).unwrap_err().to_string();
    assert!(error.contains("another `prompt`: double then, 500 bytes, sha256 "), "{error}");
    assert!(error.contains("another `seed`: none then, 3 now") && !error.contains("`input`"), "{error}");
    assert_eq!(bench.text(), lines(3));
    assert_eq!(open(&other, Start::Restart).unwrap().num_lines(), 0);
    assert_eq!(bench.text(), "");
    // Nothing was done on the new terms, so that others are fine.
    bench.run(3, &Doubling::new(), Start::Resume).unwrap();

    fs::remove_file(bench.folder.path().join("out.jsonl.run.json")).unwrap();
    let error = bench.run(3, &Doubling::new(), Start::Resume).unwrap_err();
    assert!(matches!(error, RecordsError::Foreign { .. }), "{error}");
    let error =
        bench.run(2, &Doubling::new(), Start::Restart).and(bench.run(1, &Doubling::new(), Start::Resume));
    assert!(matches!(error.unwrap_err(), RecordsError::TooManyLines { num_lines: 2, num_records: 1, .. }));
}

#[test]
fn one_process_at_a_time() {
    let bench = Bench::new();
    let first = bench.open(Start::Resume).unwrap();
    for start in [Start::Resume, Start::Restart, Start::RetryFailures] {
        let Err(error) = bench.open(start) else { panic!("two at once") };
        assert!(matches!(error, RecordsError::InUse { .. }), "{error}");
    }
    drop(first);
    bench.open(Start::Resume).unwrap();
}

#[test]
fn a_panic_is_its_records_error() {
    let bench = Bench::new();
    let answerer = Doubling::with(|record, _, _| match record {
        3 => panic!("no threes"),
        7 => std::panic::panic_any(7),
        _ => None,
    });
    bench.run(20, &answerer, Start::Resume).unwrap();
    let expected: String = (0..20)
        .map(|record| match record {
            3 => "{\"index\":3,\"error\":\"no threes\"}\n".to_owned(),
            7 => "{\"index\":7,\"error\":\"without a message\"}\n".to_owned(),
            _ => line(record) + "\n",
        })
        .collect();
    assert_eq!(bench.text(), expected);

    // Failures alone are asked again, wherever the second run is cut off.
    for cut in [None, Some(0), Some(40), Some(lines(20).len() - 5)] {
        fs::write(bench.path(), &expected).unwrap();
        let answerer = Doubling::new();
        if let Some(cut) = cut {
            drop(bench.open(Start::RetryFailures).unwrap());
            fs::write(bench.path(), &lines(20)[..cut]).unwrap();
        }
        let start = if cut == Some(40) { Start::Resume } else { Start::RetryFailures };
        bench.run(20, &answerer, start).unwrap();
        assert_eq!(bench.text(), lines(20));
        assert!(answerer.asked() <= 2, "{} asked", answerer.asked());
        assert!(!bench.folder.path().join("out.jsonl.before").exists());
    }
}

#[test]
fn fewer_records_do_not_lose_lines_of_before() {
    let bench = Bench::new();
    bench.run(20, &Doubling::new(), Start::Resume).unwrap();
    let (mut output, mut watch) = bench.open(Start::RetryFailures).unwrap();
    let options = bench.options();
    run(&mut (0..5).map(Ok), &Doubling::new(), &mut output, &options, &mut watch).unwrap();
    assert!(output.is_retrying());
    drop(output);
    let answerer = Doubling::new();
    bench.run(20, &answerer, Start::Resume).unwrap();
    assert_eq!((bench.text(), answerer.asked()), (lines(20), 0));
}

#[test]
fn a_stop_keeps_what_is_done() {
    let bench = Bench::new();
    let mut asked = 0;
    for _ in 0..20 {
        let answerer = Doubling::with(|_, before, control| {
            if before == 9 {
                bench.stop.store(true, Ordering::SeqCst);
            }
            (before > 9 && control.is_stopped()).then_some(Outcome::Stopped)
        });
        let report = bench.run(60, &answerer, Start::Resume).unwrap();
        asked += answerer.asked();
        bench.stop.store(false, Ordering::SeqCst);
        if report.ended == Ended::Complete {
            break;
        }
        assert_eq!(bench.text(), lines(report.num_skipped + report.num_written));
    }
    assert_eq!(bench.text(), lines(60));
    assert!(asked < 200, "{asked}");
}

#[test]
fn a_record_that_cannot_be_answered_now_is_asked_again_and_in_the_end_ends_the_run() {
    let bench = Bench::new();
    let tries = Mutex::new(HashMap::new());
    let flaky = Doubling::with(|record, _, _| {
        let mut tries = tries.lock().unwrap();
        let tries = tries.entry(record).or_insert(0);
        *tries += 1;
        (*tries <= record % 4).then(|| Outcome::Again { after: None, reason: "busy".to_owned() })
    });
    bench.run(20, &flaky, Start::Resume).unwrap();
    assert_eq!(bench.text(), lines(20));

    let bench = Bench::new();
    let begun = Begun::default();
    let gone = Doubling::with(|record, _, _| {
        begun.note(record, 12);
        (record == 12).then(|| Outcome::Again { after: None, reason: "unreachable".to_owned() })
    });
    let error = bench.run(40, &gone, Start::Resume).unwrap_err();
    assert!(matches!(&error, RecordsError::GaveUp { tries: 3.., .. }), "{error}");
    assert_eq!(bench.text(), lines(12));
    bench.run(40, &Doubling::new(), Start::Resume).unwrap();
    assert_eq!(bench.text(), lines(40));
}

#[test]
fn what_concerns_all_records_ends_the_run() {
    let bench = Bench::new();
    let begun = Begun::default();
    let lost = Doubling::with(|record, _, control| {
        begun.note(record, 4);
        match record {
            4 => Some(Outcome::Fatal("device lost".to_owned())),
            6 => {
                // Would wait for ever, were it not told.
                assert!(!control.wait(Duration::from_secs(60)));
                Some(Outcome::Stopped)
            }
            _ => None,
        }
    });
    let error = bench.run(40, &lost, Start::Resume).unwrap_err();
    assert_eq!(error.to_string(), "device lost");
    assert_eq!(bench.text(), lines(4));

    let (mut output, mut watch) = bench.open(Start::Resume).unwrap();
    let options = bench.options();
    let mut records = (0..9).map(Ok).chain([Err(InputError::from("line 10 went away"))]);
    let error = run(&mut records, &Doubling::new(), &mut output, &options, &mut watch).unwrap_err();
    assert_eq!((error.to_string().as_str(), bench.text()), ("line 10 went away", lines(9)));
    let bad = Doubling::with(|_, _, _| Some(Outcome::Line("{\n}".to_owned())));
    let error = run(&mut (0..20).map(Ok), &bad, &mut output, &options, &mut watch).unwrap_err();
    assert!(error.to_string().contains("line break"), "{error}");
    let none = RunOptions { concurrency: 0, ..options };
    assert!(run(&mut (0..20).map(Ok), &bad, &mut output, &none, &mut watch).is_err());
}

#[test]
fn the_first_record_may_go_alone() {
    let bench = Bench::new();
    let done = AtomicBool::new(false);
    let answerer = Doubling::with(|record, before, _| {
        if record == 0 {
            std::thread::sleep(Duration::from_millis(30));
            done.store(true, Ordering::SeqCst);
        }
        assert!(before == 0 || done.load(Ordering::SeqCst));
        None
    });
    let (mut output, mut watch) = bench.open(Start::Resume).unwrap();
    let options = RunOptions { first_alone: true, ..bench.options() };
    run(&mut (0..30).map(Ok), &answerer, &mut output, &options, &mut watch).unwrap();
    assert_eq!(bench.text(), lines(30));
}

#[test]
fn outputs_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Output::open(path, &terms(), Start::Resume, &mut Watch::default()).unwrap_err();
    let missing = folder.path().join("no").join("out.jsonl");
    assert!(matches!(open(&missing), RecordsError::NoFolder { path } if path == missing));
    assert!(open(folder.path()).to_string().contains(&folder.path().display().to_string()));
    let foreign = folder.path().join("notes.txt");
    fs::File::create(&foreign).unwrap().write_all(b"mine\n").unwrap();
    assert!(matches!(open(&foreign), RecordsError::Foreign { .. }));
    assert_eq!(fs::read(&foreign).unwrap(), b"mine\n");
}

#[cfg(unix)]
#[test]
fn a_link_stays_one() {
    let bench = Bench::new();
    let real = bench.folder.path().join("real.jsonl");
    fs::write(&real, "").unwrap();
    std::os::unix::fs::symlink(&real, bench.path()).unwrap();
    bench.run(5, &Doubling::new(), Start::Resume).unwrap();
    bench.run(5, &Doubling::new(), Start::RetryFailures).unwrap();
    assert!(bench.path().is_symlink());
    assert_eq!(fs::read_to_string(real).unwrap(), lines(5));
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 3);
}

/// Linux has a device on which every write finds no space; a link to it is no regular file, so the file is swapped.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_costs_nothing() {
    let bench = Bench::new();
    let (mut output, mut watch) = bench.open(Start::Resume).unwrap();
    let options = bench.options();
    run(&mut (0..5).map(Ok), &Doubling::new(), &mut output, &options, &mut watch).unwrap();
    output.file = fs::File::options().write(true).open("/dev/full").unwrap();
    let error = run(&mut (0..50).map(Ok), &Doubling::new(), &mut output, &options, &mut watch).unwrap_err();
    assert!(matches!(&error, RecordsError::DiskFull { path } if *path == bench.path()), "{error}");
    drop(output);
    bench.run(50, &Doubling::new(), Start::Resume).unwrap();
    assert_eq!(bench.text(), lines(50));
}
