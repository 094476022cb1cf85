//! A command that asks a teacher, killed at random instants until it is done; and that nothing was asked twice.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::random::Rng;
use super::teacher::{Ask, Teacher};

const KILLS: usize = 30;

/// Runs it again and again, and gives when each run was killed; the last one was not. After each kill `check` looks at
/// what is there.
pub fn until_done(teacher: &Teacher, command: impl Fn() -> Command, check: impl Fn()) -> Vec<Instant> {
    let mut rng = Rng::new(11);
    let mut kills = Vec::new();
    loop {
        // The key tells the teacher which run asks.
        let mut command = command();
        command.env("WARDROBE_ENDPOINT_API_KEY", kills.len().to_string());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Some kills come at any instant, its start among them; others once it has asked some more.
        let is_last = kills.len() >= KILLS;
        let deadline = Instant::now() + Duration::from_millis(rng.below(400) as u64);
        let (by_time, enough) = (rng.below(4) == 0, teacher.num_asked() + 1 + rng.below(40));
        let is_time = || if by_time { Instant::now() >= deadline } else { teacher.num_asked() >= enough };
        while (is_last || !is_time()) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        // SIGKILL: nothing can be caught.
        let _ = child.kill();
        kills.push(Instant::now());
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!said.contains("error:"), "{said}");
        if done.status.success() {
            break;
        }
        check();
    }
    assert!(kills.len() > 4, "only {} kills", kills.len() - 1);
    kills
}

/// Of `num` questions none was asked again but those that were under way when a kill came, and gives how often any was
/// asked.
pub fn nothing_twice(teacher: &Teacher, kills: &[Instant], num: usize, concurrency: usize) -> usize {
    let (mut again, mut num_asked) = (0, 0);
    for (question, asked) in teacher.asked() {
        num_asked += asked.asks.len();
        again += asked.asks.len() - 1;
        let run = |ask: &Ask| ask.key.parse::<usize>().unwrap();
        let runs: HashSet<usize> = asked.asks.iter().map(run).collect();
        assert_eq!(runs.len(), asked.asks.len(), "{question} was asked twice by one run");
        let last = runs.iter().max().unwrap();
        for ask in asked.asks.iter().filter(|ask| run(ask) != *last) {
            // Its answer may have been on its way, or not yet on the disk; no other is asked for again.
            let killed_at = kills[run(ask)];
            let before = ask.answered_at.map_or(Duration::ZERO, |at| killed_at.saturating_duration_since(at));
            assert!(before < Duration::from_secs(1), "{question} was answered {before:?} before the kill");
        }
    }
    assert_eq!(teacher.asked().len(), num);
    let num_kills = kills.len() - 1;
    assert!(again <= num_kills * concurrency, "{again} of {num_asked} again, after {num_kills} kills");
    num_asked
}
