//! A teacher behind HTTP that answers by what it is asked, counts what it is asked, and can misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What the teacher does with a request.
pub enum Reply {
    /// An answer, how it ended, and so long after it was asked.
    Answer(String, &'static str, Duration),
    /// A status with further headers and a body.
    Refusal(&'static str, &'static str, String),
    /// Nothing, for so long.
    Stall(Duration),
}

/// One conversation, each time that it was asked.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub asks: Vec<Ask>,
    pub body: Value,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The API key that it came with.
    pub key: String,
    pub asked_at: Instant,
    /// When the whole answer was on its way.
    pub answered_at: Option<Instant>,
}

type Behaviour = dyn Fn(&Value, usize) -> Reply + Send + Sync;

/// A running teacher; it ends with the test's process.
#[derive(Clone)]
pub struct Teacher {
    pub url: String,
    asked: Arc<Mutex<BTreeMap<String, Asked>>>,
}

impl Teacher {
    /// `behaviour` is given a request's body, and how often the same conversation was asked before.
    pub fn start(behaviour: impl Fn(&Value, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let teacher = Self { url, asked: Arc::default() };
        let (behaviour, ours): (Arc<Behaviour>, _) = (Arc::new(behaviour), teacher.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (behaviour, ours) = (behaviour.clone(), ours.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    // The client may be killed at any instant.
                    while ours.serve(&mut stream, &*behaviour).is_some() {}
                });
            }
        });
        teacher
    }

    fn serve(&self, stream: &mut TcpStream, behaviour: &Behaviour) -> Option<()> {
        let (path, api_key, body) = request(stream)?;
        if path == "/v1/models" {
            return respond(stream, "200 OK", "", &json!({"data": [{"id": "teacher"}]}).to_string());
        }
        let key = body["messages"].to_string();
        let num_before = {
            let mut asked = self.asked.lock().unwrap();
            let asked = asked.entry(key.clone()).or_default();
            asked.asks.push(Ask { key: api_key, asked_at: Instant::now(), answered_at: None });
            asked.body = body.clone();
            asked.asks.len() - 1
        };
        match behaviour(&body, num_before) {
            Reply::Answer(text, finish_reason, after) => {
                std::thread::sleep(after);
                let num = |text: &str| text.split_whitespace().count();
                let answer = json!({
                    "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
                    "usage": {"prompt_tokens": num(&key), "completion_tokens": num(&text)},
                });
                respond(stream, "200 OK", "", &answer.to_string())?;
                let mut asked = self.asked.lock().unwrap();
                asked.get_mut(&key)?.asks[num_before].answered_at = Some(Instant::now());
                Some(())
            }
            Reply::Refusal(status, headers, body) => respond(stream, status, headers, &body),
            Reply::Stall(time) => {
                std::thread::sleep(time);
                None
            }
        }
    }

    /// What was asked so far, by conversation.
    pub fn asked(&self) -> BTreeMap<String, Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests there were.
    pub fn num_asked(&self) -> usize {
        self.asked.lock().unwrap().values().map(|asked| asked.asks.len()).sum()
    }
}

/// A request's path, API key and body; none once the connection has ended.
fn request(stream: &mut TcpStream) -> Option<(String, String, Value)> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut path, mut key, mut length) = (String::new(), String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if path.is_empty() {
            line.split(' ').nth(1)?.clone_into(&mut path);
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("authorization: bearer ") {
            value.trim().clone_into(&mut key);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, key, serde_json::from_slice(&body).unwrap_or_default()))
}

fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> Option<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).ok()
}
