use super::*;
use crate::ids::TokenId;

/// Runs a future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

fn stream(n: usize, capacity_tokens: usize) -> (StreamSender, ResponseStream) {
    response_stream(n, capacity_tokens, Arc::new(|| {}))
}

fn token(choice: usize, id: u32, finish: Option<Finish>) -> Update {
    Update { choice, text: id.to_string(), token_ids: vec![TokenId(id)], logprobs: Vec::new(), finish }
}

#[test]
fn deltas_of_a_choice_coalesce_and_choices_keep_apart() {
    let (mut sender, reader) = stream(2, 100);
    sender.send(token(0, 1, None));
    sender.send(token(1, 9, None));
    sender.send(token(0, 2, Some(Finish::Length)));
    sender.send(token(1, 8, Some(Finish::Length)));
    sender.finish(Summary::default());
    let events: Vec<_> = reader.collect();
    assert_eq!(events.len(), 3);
    assert!(matches!(&events[0], Event::Update(u) if u.choice == 0 && u.text == "12" && u.finish.is_some()));
    assert!(matches!(&events[1], Event::Update(u) if u.choice == 1 && u.text == "98"));
    assert!(matches!(&events[2], Event::Summary(_)));
}

#[test]
fn full_until_read_and_the_engine_is_woken() {
    let woken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = woken.clone();
    let (mut sender, mut reader) = response_stream(
        1,
        2,
        Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }),
    );
    sender.send(token(0, 1, None));
    assert!(!sender.is_full());
    sender.send(token(0, 2, None));
    assert!(sender.is_full());
    assert!(reader.try_next().is_some());
    assert!(!sender.is_full());
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    drop(reader);
    assert!(sender.is_cancelled());
    assert_eq!(woken.load(Ordering::Relaxed), 2);
}

#[test]
fn nothing_after_the_end_of_a_choice_and_a_lost_sender_ends_all() {
    let (mut sender, reader) = stream(2, 100);
    sender.send(token(0, 1, Some(Finish::Length)));
    sender.send(token(0, 2, Some(Finish::Length)));
    drop(sender);
    let completion = reader.completion_blocking();
    assert_eq!(completion.choices[0].token_ids, [TokenId(1)]);
    assert_eq!(completion.choices[0].finish, Some(Finish::Length));
    assert!(matches!(completion.choices[1].finish, Some(Finish::Error { .. })));
}

#[test]
fn async_readers_are_woken() {
    let (mut sender, reader) = stream(1, 100);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        sender.send(token(0, 1, Some(Finish::Length)));
        sender.finish(Summary::default());
    });
    let completion = block_on(reader.completion());
    thread.join().unwrap();
    assert_eq!(completion.choices[0].token_ids, [TokenId(1)]);
}
