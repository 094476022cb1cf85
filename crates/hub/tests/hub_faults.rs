//! Pulling from a hub, a network and a storage host that misbehave.

// Clippy knows test functions, but not the helpers they call.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Hub, Request, Response, TOKEN, Told, cause, noise};
use wardrobe_hub::{HubError, ModelRef, pull};

fn is_weights(request: &Request) -> bool {
    request.host == "storage" && request.path.starts_with("/storage/model.safetensors")
}

/// Answers the first `count` requests for the weights with `change`, later ones as they are.
fn first_weights(hub: &Hub, count: usize, change: impl Fn(Response) -> Response + Send + Sync + 'static) {
    let seen = AtomicUsize::new(0);
    hub.hook(move |request, response| {
        if is_weights(request) && seen.fetch_add(1, Ordering::SeqCst) < count {
            change(response)
        } else {
            response
        }
    });
}

fn weights_requests(hub: &Hub) -> Vec<Option<usize>> {
    hub.requests().iter().filter(|request| is_weights(request)).map(Request::range_start).collect()
}

fn assert_pulled(hub: &Hub) {
    let path = hub.pull("o/n").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    assert!(hub.parts().is_empty());
}

/// Nothing is taken for complete after an error.
fn assert_empty(hub: &Hub) {
    assert!(hub.cache().list().unwrap().is_empty() && hub.cache().lookup("o/n").is_none());
}

#[test]
fn a_connection_cut_in_the_middle_is_resumed() {
    let hub = Hub::start();
    first_weights(&hub, 3, |response| Response { cut_after_bytes: Some(80_000), ..response });
    let told = Told::default();
    // Three cuts with two repetitions allowed: each cut brought bytes, so the count starts anew.
    pull(&ModelRef::parse("o/n").unwrap(), &hub.options(), &told).unwrap();
    assert_eq!(weights_requests(&hub), [None, Some(80_000), Some(160_000), Some(240_000)]);
    assert_eq!(Some(*told.bytes.lock().unwrap() as u64), told.totals.lock().unwrap()[0]);
    assert!(told.messages.lock().unwrap().iter().any(|line| line.contains("80000 of 300000 bytes")));
    assert_pulled(&hub);
}

#[test]
fn a_later_pull_resumes_and_a_damaged_rest_is_fetched_anew() {
    for damage in [false, true] {
        let hub = Hub::start();
        first_weights(&hub, 100, |response| Response { cut_after_bytes: Some(1000), ..response });
        let error = cause(hub.pull("o/n"));
        assert!(matches!(error, HubError::Transport { .. }), "{error:?}");
        assert_empty(&hub);
        let part = hub.parts().into_iter().find(|path| path.ends_with("model.safetensors.part")).unwrap();
        assert_eq!(fs::metadata(&part).unwrap().len(), 3000);
        if damage {
            fs::write(&part, noise(2999)).unwrap();
            let mut wrong = fs::read(&part).unwrap();
            wrong[5] ^= 1;
            fs::write(&part, wrong).unwrap();
        }
        hub.unhook();
        hub.requests();
        assert_pulled(&hub);
        let expected = if damage { vec![Some(2999), None] } else { vec![Some(3000)] };
        assert_eq!(weights_requests(&hub), expected);
    }
}

#[test]
fn a_rest_without_a_checksum_is_not_trusted() {
    let hub = Hub::start();
    hub.repo.lock().unwrap().blobs = false;
    first_weights(&hub, 100, |response| Response { cut_after_bytes: Some(1000), ..response });
    cause(hub.pull("o/n"));
    let part = hub.parts().into_iter().find(|path| path.ends_with("model.safetensors.part")).unwrap();
    fs::write(part, noise(1000)).unwrap();
    hub.unhook();
    hub.requests();
    assert_pulled(&hub);
    assert_eq!(weights_requests(&hub), [None]);
}

#[test]
fn a_server_that_ignores_or_refuses_ranges_sends_it_all_again() {
    let hub = Hub::start();
    let content = hub.content("model.safetensors");
    let seen = AtomicUsize::new(0);
    hub.hook(move |request, response| {
        match is_weights(request).then(|| seen.fetch_add(1, Ordering::SeqCst)) {
            Some(0) => Response { cut_after_bytes: Some(80_000), ..response },
            Some(_) => Response::new(200, content.clone()),
            None => response,
        }
    });
    let told = Told::default();
    pull(&ModelRef::parse("o/n").unwrap(), &hub.options(), &told).unwrap();
    assert_eq!(Some(*told.bytes.lock().unwrap() as u64), told.totals.lock().unwrap()[0]);
    assert_pulled(&hub);

    let hub = Hub::start();
    let seen = AtomicUsize::new(0);
    hub.hook(move |request, response| {
        match is_weights(request).then(|| seen.fetch_add(1, Ordering::SeqCst)) {
            Some(0) => Response { cut_after_bytes: Some(80_000), ..response },
            Some(1) => Response::new(416, ""),
            _ => response,
        }
    });
    assert_pulled(&hub);
    assert_eq!(weights_requests(&hub), [None, Some(80_000), None]);
}

#[test]
fn a_wrong_part_is_refused() {
    for range in
        ["bytes 0-299999/300000", "bytes 80001-299999/300000", "nonsense", "bytes 80000-400000/300000"]
    {
        let hub = Hub::start();
        let seen = AtomicUsize::new(0);
        hub.hook(move |request, response| {
            match is_weights(request).then(|| seen.fetch_add(1, Ordering::SeqCst)) {
                Some(0) => Response { cut_after_bytes: Some(80_000), ..response },
                Some(_) => Response::new(206, noise(100)).with("Content-Range", range),
                None => response,
            }
        });
        let error = cause(hub.pull("o/n"));
        assert!(matches!(error, HubError::BadAnswer { .. }), "{range}: {error:?}");
        assert_empty(&hub);
    }
}

#[test]
fn wrong_content_is_deleted_and_named() {
    let hub = Hub::start();
    first_weights(&hub, 100, |mut response| {
        response.body[150_000] ^= 1;
        response
    });
    let error = cause(hub.pull("o/n"));
    assert!(
        matches!(&error, HubError::WrongChecksum { what, .. } if what == "model.safetensors"),
        "{error:?}"
    );
    assert_empty(&hub);
    assert!(!hub.parts().iter().any(|path| path.to_string_lossy().contains("model.safetensors")));
    hub.unhook();
    assert_pulled(&hub);
}

#[test]
fn wrong_sizes_and_lying_lengths_are_errors() {
    type Change = fn(Response) -> Response;
    let cases: [(&str, Change); 5] = [
        ("announces less", |response| Response { content_length: Some(299_999), ..response }),
        ("announces more", |response| Response { content_length: Some(300_001), ..response }),
        ("announces absurdly much", |response| Response { content_length: Some(u64::MAX), ..response }),
        ("sends more in chunks", |mut response| {
            response.body.push(0);
            Response { chunked: true, ..response }
        }),
        ("sends less in chunks, each time", |mut response| {
            response.body.truncate(10);
            Response { chunked: true, ..response }
        }),
    ];
    for (name, change) in cases {
        let hub = Hub::start();
        first_weights(&hub, 100, change);
        let error = cause(hub.pull("o/n"));
        let right = match name {
            "sends less in chunks, each time" => matches!(error, HubError::Transport { .. }),
            // More than the largest file there is: the HTTP client itself may refuse it.
            "announces absurdly much" => {
                matches!(error, HubError::WrongSize { .. } | HubError::Transport { .. })
            }
            _ => matches!(error, HubError::WrongSize { expected_bytes: 300_000, .. }),
        };
        assert!(right, "{name}: {error:?}");
        assert_empty(&hub);
    }
}

#[test]
fn a_hub_that_contradicts_itself_is_refused() {
    let headers = [
        ("X-Linked-Size", "300001".to_owned()),
        ("X-Linked-ETag", format!("\"{}\"", "0".repeat(64))),
        ("X-Repo-Commit", "2".repeat(40)),
    ];
    for (name, value) in headers {
        let hub = Hub::start();
        hub.hook(move |request, mut response| {
            if request.host == "hub" && request.path.contains("model.safetensors") {
                response.headers.retain(|header| header.0 != name);
                response = response.with(name, &value);
            }
            response
        });
        let error = cause(hub.pull("o/n"));
        let right = matches!(
            error,
            HubError::WrongSize { .. } | HubError::WrongChecksum { .. } | HubError::BadAnswer { .. }
        );
        assert!(right, "{name}: {error:?}");
        assert_empty(&hub);
    }
}

#[test]
fn gated_private_and_missing_things_say_what_to_do_and_never_the_token() {
    let respond = |status: u16, code: &'static str, message: &'static str| {
        move |_: &Request, _: Response| {
            Response::new(status, "").with("X-Error-Code", code).with("X-Error-Message", message)
        }
    };
    let hub = Hub::start();
    hub.hook(respond(403, "GatedRepo", "Access to model o/n is restricted"));
    let error = hub.pull("o/n").unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("HTTP 403") && text.contains("is restricted") && text.contains("accept its terms"),
        "{text}"
    );
    assert!(!format!("{text} {error:?} {}", error.full_message()).contains(TOKEN));
    let mut options = hub.options();
    options.hub.token = None;
    hub.hook(respond(401, "RepoNotFound", "Invalid username or password."));
    let error = pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap_err().to_string();
    assert!(error.contains("HTTP 401") && error.contains("set HF_TOKEN"), "{error}");
    assert_eq!(hub.requests().len(), 2, "a refusal is not repeated");
    hub.unhook();
    let error = hub.pull("o/n@no-such-branch").unwrap_err().to_string();
    assert!(error.contains("RevisionNotFound") && error.contains("check the spelling"), "{error}");
    let error = hub.pull("o/n:none.gguf").unwrap_err().to_string();
    assert!(error.contains("none.gguf") && error.contains("q/m.Q4_1.gguf"), "{error}");
    // Listed, and then not there.
    hub.hook(|request, response| if is_weights(request) { Response::new(404, "") } else { response });
    let error = cause(hub.pull("o/n"));
    assert!(
        matches!(&error, HubError::NotFound { what, .. } if what.contains("model.safetensors")),
        "{error:?}"
    );
}

#[test]
fn a_busy_hub_is_asked_again_after_the_time_it_names() {
    let hub = Hub::start();
    let seen = AtomicUsize::new(0);
    hub.hook(move |_, response| match seen.fetch_add(1, Ordering::SeqCst) {
        0 => Response::new(429, "").with("Retry-After", 1),
        1 => Response::new(503, ""),
        4 => Response::new(500, ""),
        _ => response,
    });
    let start = Instant::now();
    assert_pulled(&hub);
    assert!(start.elapsed() >= Duration::from_secs(1));

    let hub = Hub::start();
    hub.hook(|_, _| Response::new(429, "").with("Retry-After", 3600));
    let error = cause(hub.pull("o/n"));
    assert!(matches!(error, HubError::RateLimited { retry_after_s: Some(3600) }), "{error:?}");
    assert_eq!(hub.requests().len(), 1);
    hub.hook(|_, _| Response::new(502, ""));
    let error = cause(hub.pull("o/n"));
    assert!(matches!(error, HubError::Status { status: 502, .. }), "{error:?}");
    assert_eq!(hub.requests().len(), 3, "one request and two repetitions");
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in [
        "../../evil.safetensors",
        "/etc/evil.safetensors",
        "a/../../b.safetensors",
        "..\\evil.safetensors",
        "x\0.safetensors",
    ] {
        let hub = Hub::start();
        hub.repo.lock().unwrap().files.insert(name.to_owned(), (b"x".to_vec(), false));
        let error = cause(hub.pull("o/n"));
        assert!(
            matches!(&error, HubError::BadAnswer { reason, .. } if reason.contains("outside")),
            "{name}: {error:?}"
        );
        assert!(
            support::files_below(hub.folder.path())
                .iter()
                .all(|path| !path.to_string_lossy().contains("evil"))
        );
    }
}

#[test]
fn listings_that_are_none_are_refused() {
    let bodies: [(&str, Vec<u8>); 6] = [
        ("html", b"<html>log in</html>".to_vec()),
        ("empty", Vec::new()),
        ("no commit", br#"{"sha":"../..","siblings":[]}"#.to_vec()),
        ("wrong types", br#"{"sha":1,"siblings":{}}"#.to_vec()),
        ("deep", "[".repeat(100_000).into_bytes()),
        ("not UTF-8", vec![0xff; 100]),
    ];
    for (name, body) in bodies {
        let hub = Hub::start();
        hub.hook(move |_, _| Response::new(200, body.clone()));
        let error = cause(hub.pull("o/n"));
        assert!(matches!(error, HubError::BadAnswer { .. }), "{name}: {error:?}");
    }
    let hub = Hub::start();
    hub.hook(|_, _| Response { chunked: true, ..Response::new(200, vec![b' '; 33 * 1024 * 1024]) });
    let error = cause(hub.pull("o/n"));
    assert!(matches!(error, HubError::TooLarge { .. }), "{error:?}");
}

#[test]
fn redirects_that_lead_nowhere_are_errors() {
    for location in ["", "file:///etc/passwd", "http://", "::", "/storage/model.safetensors\u{7f}"] {
        let hub = Hub::start();
        hub.hook(move |request, response| {
            if request.path.contains("resolve") {
                Response::new(302, "").with("Location", location)
            } else {
                response
            }
        });
        let error = cause(hub.pull("o/n"));
        // The HTTP client itself refuses some of them.
        let right = matches!(error, HubError::BadAnswer { .. } | HubError::Transport { .. });
        assert!(right, "{location:?}: {error:?}");
    }
    let hub = Hub::start();
    hub.hook(|request, _| Response::new(307, "").with("Location", &request.path));
    let error = cause(hub.pull("o/n"));
    assert!(error.to_string().contains("redirects too often"), "{error}");
    assert!(hub.requests().len() <= 12);
}

#[test]
fn a_signed_address_appears_in_no_error() {
    let hub = Hub::start();
    first_weights(&hub, 100, |_| Response::new(403, ""));
    let told = Told::default();
    let error = pull(&ModelRef::parse("o/n").unwrap(), &hub.options(), &told).unwrap_err();
    let all = format!("{error:?} {} {:?}", error.full_message(), told.messages.lock().unwrap());
    assert!(!all.contains("s1gned") && !all.contains(TOKEN), "{all}");
}

#[test]
fn silence_and_closed_doors_end_in_an_error_in_time() {
    let hub = Hub::start();
    let mut options = hub.options();
    options.hub.retry.read_timeout = Duration::from_millis(200);
    first_weights(&hub, 1, |response| Response { stall: Some(Duration::from_secs(3)), ..response });
    let path = pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    // Had the silent connection been waited for, there would be no second request.
    assert_eq!(weights_requests(&hub), [None, Some(299_999)]);

    // A port that nobody listens on: taken and given back.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = hub.options();
    options.refresh = true;
    options.hub.endpoint = Some(format!("http://{free}"));
    let error = pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap_err();
    assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn a_gguf_file_that_is_none_is_refused_and_not_kept() {
    let hub = Hub::start();
    hub.repo.lock().unwrap().files.insert("page.gguf".to_owned(), (b"<html>".to_vec(), false));
    let error = cause(hub.pull("o/n:page.gguf"));
    assert!(matches!(error, HubError::NotAModel { .. }), "{error:?}");
    assert!(hub.parts().is_empty());
}

#[test]
fn bad_settings_are_named() {
    let hub = Arc::new(Hub::start());
    for endpoint in ["nonsense", "ftp://x", "http://me:s3cret@127.0.0.1"] {
        let mut options = hub.options();
        options.hub.endpoint = Some(endpoint.to_owned());
        let error = pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT") && !error.contains("s3cret"), "{error}");
    }
    let mut options = hub.options();
    options.from = Some("x.whl".into());
    let error = pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap_err().to_string();
    assert!(error.contains("--from"), "{error}");
}
