//! The file.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use wardrobe_generator::{Answer, Generator, Question, TokenScore, Usage};

use crate::error::{BatchError, Result};
use crate::ids::now_ms;
use crate::store::schema::Schema;
use crate::store::{Database, Failure, number, whole};

/// How long a call waits for another process that writes. An answer has been paid for, so that it is worth a wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer answers are not kept, and not read.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Names that somebody else chose are no longer.
const MAX_NAME_CHARS: usize = 64;
/// Part of what is digested: another rule, another number.
const KEY_VERSION: u32 = 1;

const SCHEMA: Schema = Schema {
    // `WRDA`
    application_id: 0x5752_4441,
    migrations: &[
        "
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE CHECK (length(key) = 32),
    who TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
",
        "
CREATE TABLE scores (
    seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE CHECK (length(key) = 32),
    who TEXT NOT NULL,
    scores BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
",
    ],
};

/// Bytes of a token's score: its logarithm, and whether no other was likelier.
const SCORE_BYTES: usize = 9;

/// The digest of a question and of who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AnswerKey([u8; 32]);

impl AnswerKey {
    /// SHA-256 over the identity of who is asked, the whole prompt, what the answer is held to and how it is drawn.
    pub fn of(who: &dyn Generator, question: &Question) -> Self {
        let said = json!({"version": KEY_VERSION, "who": who.identity(), "question": question});
        Self(Sha256::digest(said.to_string().as_bytes()).into())
    }

    /// The same of how likely the tokens from the one at `from` on are.
    pub fn of_scores(who: &dyn Generator, tokens: &[u32], from: usize) -> Self {
        let said = json!({"version": KEY_VERSION, "who": who.identity(), "tokens": tokens, "from": from});
        Self(Sha256::digest(said.to_string().as_bytes()).into())
    }
}

/// Answers in a file.
pub struct Answers(Database);

impl Answers {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// It cannot be opened, is locked, damaged, another program's, or of a later version.
    pub fn open(path: &Path) -> Result<Self> {
        Database::open(path, &SCHEMA, BUSY_TIMEOUT).map(Self)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The answer to a question, if it was asked before.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, key: &AnswerKey) -> Result<Option<Answer>> {
        self.0.read(|connection| Ok(find(connection, key)?))
    }

    /// Keeps an answer, on the disk when this returns, and gives the one that counts from now on: the first, or with
    /// `anew` this one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, key: &AnswerKey, who: &str, answer: Answer, anew: bool) -> Result<Answer> {
        if answer.text.len() > MAX_TEXT_BYTES {
            return Ok(answer);
        }
        let and_if_there = match anew {
            false => "NOTHING",
            true => {
                "UPDATE SET who = excluded.who, text = excluded.text, finish_reason = excluded.finish_reason, \
                 prompt_tokens = excluded.prompt_tokens, cached_tokens = excluded.cached_tokens, \
                 completion_tokens = excluded.completion_tokens, created_at_ms = excluded.created_at_ms"
            }
        };
        let kept = self.0.change(|transaction| {
            let insert = format!(
                "INSERT INTO answers (key, who, text, finish_reason, prompt_tokens, cached_tokens, \
                 completion_tokens, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
                 ON CONFLICT (key) DO {and_if_there}"
            );
            let usage = &answer.usage;
            transaction.prepare(&insert)?.execute(params![
                key.0,
                short(who),
                answer.text,
                short(&answer.finish_reason),
                number(usage.prompt_tokens),
                number(usage.cached_tokens),
                number(usage.completion_tokens),
                now_ms(),
            ])?;
            Ok::<_, Failure>(find(transaction, key)?)
        })?;
        Ok(kept.unwrap_or(answer))
    }

    /// The scores of a text's tokens, if they were asked for before.
    ///
    /// # Errors
    /// The file cannot be read, or has something else in their place.
    pub fn scores(&self, key: &AnswerKey) -> Result<Option<Vec<TokenScore>>> {
        let query = "SELECT scores FROM scores WHERE key = ?1 AND length(scores) <= ?2";
        let bytes: Option<Vec<u8>> = self.0.read(|connection| {
            let mut query = connection.prepare(query)?;
            Ok(query.query_row(params![key.0, number(MAX_TEXT_BYTES as u64)], |row| row.get(0)).optional()?)
        })?;
        let Some(bytes) = bytes else { return Ok(None) };
        let (scores, rest) = bytes.as_chunks::<SCORE_BYTES>();
        if !rest.is_empty() {
            let reason = "scores of tokens that end within one".to_owned();
            return Err(BatchError::Corrupt { path: self.path().to_owned(), reason });
        }
        let score = |[logprob @ .., is_likeliest]: &[u8; SCORE_BYTES]| TokenScore {
            logprob: f64::from_le_bytes(*logprob),
            is_likeliest: *is_likeliest != 0,
        };
        Ok(Some(scores.iter().map(score).collect()))
    }

    /// Keeps the scores of a text's tokens, on the disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_scores(&self, key: &AnswerKey, who: &str, scores: &[TokenScore]) -> Result<()> {
        let bytes: Vec<u8> = scores
            .iter()
            .flat_map(|score| score.logprob.to_le_bytes().into_iter().chain([u8::from(score.is_likeliest)]))
            .collect();
        if bytes.len() > MAX_TEXT_BYTES {
            return Ok(());
        }
        let insert = "INSERT INTO scores (key, who, scores, created_at_ms) VALUES (?1, ?2, ?3, ?4) \
                      ON CONFLICT (key) DO NOTHING";
        self.0.change(|transaction| {
            transaction.prepare(insert)?.execute(params![key.0, short(who), bytes, now_ms()])?;
            Ok::<_, Failure>(())
        })
    }

    /// How many answers and scored texts there are.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn num(&self) -> Result<u64> {
        self.0.read(|connection| {
            Ok(connection
                .query_row(
                    "SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM scores)",
                    [],
                    |row| row.get(0),
                )
                .map(whole)?)
        })
    }
}

fn short(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

fn find(connection: &Connection, key: &AnswerKey) -> rusqlite::Result<Option<Answer>> {
    let mut query = connection.prepare(
        "SELECT text, finish_reason, prompt_tokens, cached_tokens, completion_tokens FROM answers \
         WHERE key = ?1 AND octet_length(text) <= ?2",
    )?;
    let answer = |row: &Row<'_>| {
        Ok(Answer {
            text: row.get(0)?,
            finish_reason: row.get(1)?,
            usage: Usage {
                prompt_tokens: whole(row.get(2)?),
                cached_tokens: whole(row.get(3)?),
                completion_tokens: whole(row.get(4)?),
            },
        })
    };
    query.query_row(params![key.0, number(MAX_TEXT_BYTES as u64)], answer).optional()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wardrobe_generator::{AskError, Message, Stopped};

    use super::*;

    struct Named(&'static str);

    impl Generator for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn identity(&self) -> Vec<(&'static str, String)> {
            vec![("model", self.0.to_owned())]
        }

        fn concurrency(&self) -> usize {
            1
        }

        fn generate(&self, _question: &Question, _stopped: &Stopped<'_>) -> Result<Answer, AskError> {
            Err(AskError::Stopped)
        }
    }

    fn answer(text: &str) -> Answer {
        let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2 };
        Answer { text: text.to_owned(), finish_reason: "stop".to_owned(), usage }
    }

    #[test]
    fn whatever_changes_an_answer_changes_its_key() {
        let chat = |texts: &[&str]| {
            Question::chat(texts.iter().map(|text| Message::text("user", *text)).collect(), 10)
        };
        let question = chat(&["a"]);
        let mut keys = vec![
            AnswerKey::of(&Named("other"), &question),
            AnswerKey::of(&Named("m"), &chat(&["b"])),
            AnswerKey::of(&Named("m"), &chat(&["a", ""])),
        ];
        for other in [
            Question { max_tokens: 11, ..question.clone() },
            Question { temperature: 0.1, ..question.clone() },
            Question { top_p: 0.9, ..question.clone() },
            Question { seed: Some(0), ..question.clone() },
            Question { held: wardrobe_generator::Held::Free, ..question.clone() },
            Question { held: wardrobe_generator::Held::Schema(json!({})), ..question.clone() },
            Question { prompt: wardrobe_generator::Prompt::Text("a".to_owned()), ..question.clone() },
            question.clone(),
        ] {
            keys.push(AnswerKey::of(&Named("m"), &other));
        }
        assert_eq!(AnswerKey::of(&Named("m"), &question), *keys.last().unwrap());
        for (idx, key) in keys.iter().enumerate() {
            assert!(!keys[idx + 1..].contains(key), "{idx}");
        }
    }

    #[test]
    fn the_first_answer_stays_unless_it_is_asked_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.sqlite");
        let answers = Answers::open(&path).unwrap();
        let key = AnswerKey([7; 32]);
        assert_eq!(answers.get(&key).unwrap(), None);
        let odd = "\u{0}é\u{1f600}\u{202e} \"'\n\r\t";
        assert_eq!(answers.put(&key, "who", answer(odd), false).unwrap(), answer(odd));
        // Another process has asked the same meanwhile.
        let others = Answers::open(&path).unwrap();
        assert_eq!(others.put(&key, "who", answer("late"), false).unwrap(), answer(odd));
        assert_eq!(others.put(&key, "who", answer("anew"), true).unwrap(), answer("anew"));
        assert_eq!((answers.get(&key).unwrap(), answers.num().unwrap()), (Some(answer("anew")), 1));
        // What is longer than any answer may be is not kept.
        let long = answer(&"x".repeat(MAX_TEXT_BYTES + 1));
        assert_eq!(answers.put(&AnswerKey([8; 32]), "who", long.clone(), false).unwrap(), long);
        assert_eq!(answers.num().unwrap(), 1);
    }

    #[test]
    fn scores_come_back_to_the_bit_and_by_their_own_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.sqlite");
        let answers = Answers::open(&path).unwrap();
        let score = |logprob, is_likeliest| TokenScore { logprob, is_likeliest };
        let scores = [score(-0.1, true), score(f64::NEG_INFINITY, false), score(-1e-300, false)];
        let keys = [(&[1, 2, 3][..], 1), (&[1, 2, 3], 2), (&[1, 2], 1), (&[], 1)]
            .map(|(tokens, from)| AnswerKey::of_scores(&Named("m"), tokens, from));
        answers.put_scores(&keys[0], "m", &scores).unwrap();
        answers.put_scores(&keys[3], "m", &[]).unwrap();
        let read = |key: &AnswerKey| Answers::open(&path).unwrap().scores(key).unwrap();
        assert_eq!(read(&keys[0]), Some(scores.to_vec()));
        assert_eq!((read(&keys[3]), answers.num().unwrap()), (Some(Vec::new()), 2));
        for key in [keys[1], keys[2], AnswerKey::of_scores(&Named("other"), &[1, 2, 3], 1)] {
            assert_eq!(read(&key), None);
        }
        // Another program wrote there.
        let other = Connection::open(&path).unwrap();
        other.execute("UPDATE scores SET scores = X'0102' WHERE key = ?1", params![keys[0].0]).unwrap();
        assert!(matches!(answers.scores(&keys[0]), Err(BatchError::Corrupt { .. })));
    }

    #[test]
    fn many_threads_and_connections_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.sqlite");
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    // All of them make the file.
                    let answers = Answers::open(path).unwrap();
                    for num in 0..20 {
                        let mut key = [thread; 32];
                        key[0] = num;
                        let text = format!("{thread} {num}");
                        answers.put(&AnswerKey(key), "who", answer(&text), false).unwrap();
                    }
                });
            }
        });
        let answers = Answers::open(&path).unwrap();
        assert_eq!(answers.num().unwrap(), 160);
        let mut key = [5; 32];
        key[0] = 9;
        assert_eq!(answers.get(&AnswerKey(key)).unwrap(), Some(answer("5 9")));
    }

    #[test]
    fn a_writer_waits_for_another_and_a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.sqlite");
        let answers = Arc::new(Answers::open(&path).unwrap());
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let waits = {
            let answers = answers.clone();
            std::thread::spawn(move || answers.put(&AnswerKey([1; 32]), "who", answer("a"), false))
        };
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished());
        // Readers do not wait.
        assert_eq!(Answers::open(&path).unwrap().num().unwrap(), 0);
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), answer("a"));
        // What holds on for longer is an error and no hang.
        let database = Database::open(&path, &SCHEMA, Duration::from_millis(50)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let refused = Answers(database).put(&AnswerKey([2; 32]), "who", answer("b"), false);
        assert!(matches!(refused, Err(BatchError::Locked { .. })), "{refused:?}");
        drop(other);

        std::fs::write(folder.path().join("none"), "no database, but long enough to look at".repeat(40))
            .unwrap();
        assert!(matches!(Answers::open(&folder.path().join("none")), Err(BatchError::Corrupt { .. })));
        let foreign = Connection::open(folder.path().join("foreign")).unwrap();
        foreign.execute_batch("CREATE TABLE answers (a)").unwrap();
        assert!(matches!(Answers::open(&folder.path().join("foreign")), Err(BatchError::Corrupt { .. })));
        let later = folder.path().join("later");
        drop(Answers::open(&later).unwrap());
        Connection::open(&later).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Answers::open(&later), Err(BatchError::TooNew { found: 99, known: 2, .. })));
        assert!(matches!(Answers::open(&folder.path().join("no/folder")), Err(BatchError::Io { .. })));
    }
}
