//! Addresses: what is accepted as one, how two compare, how one is sent and how one is shown.

use ureq::http::uri::{Scheme, Uri};

use crate::error::HubError;

pub(super) fn checked_endpoint(text: &str) -> Result<String, HubError> {
    let text = text.trim().trim_end_matches('/');
    let bad =
        |reason: &str| HubError::BadSetting { setting: "HF_ENDPOINT".to_owned(), reason: reason.to_owned() };
    let uri: Uri = text.parse().map_err(|_| bad("it is not an address"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(bad("it is not an address that begins with https:// or http://"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(bad("it holds a user or password; use HF_TOKEN"));
    }
    if uri.query().is_some() {
        return Err(bad("it holds a query"));
    }
    Ok(text.to_owned())
}

fn port(uri: &Uri) -> Option<u16> {
    uri.port_u16().or_else(|| if uri.scheme() == Some(&Scheme::HTTPS) { Some(443) } else { Some(80) })
}

pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

pub(super) fn is_loopback(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// The address that a `Location` means at `base` (RFC 3986, section 5.2, for the forms that servers send).
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    // RFC 3986: a fragment is not sent.
    let location = location.trim().split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.split(['/', '?']).next()?.contains(':') {
        return None;
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    text.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

/// An address for people: no user, no password, no query (it may hold a signature).
pub(super) fn shown_url(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => plain.to_owned(),
    }
}

/// Percent-encodes what is not an unreserved character of a path (RFC 3986, section 2.3).
pub(super) fn percent_encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations() {
        let base = uri("https://hub.test:8443/o/n/resolve/main/f?x=1");
        let resolved = |location: &str| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(resolved("https://cdn.test/a?sig=1#frag").unwrap(), "https://cdn.test/a?sig=1");
        assert_eq!(resolved("/b/c?y").unwrap(), "https://hub.test:8443/b/c?y");
        assert_eq!(resolved("//cdn.test/a").unwrap(), "https://cdn.test/a");
        assert_eq!(resolved("g").unwrap(), "https://hub.test:8443/o/n/resolve/main/g");
        for location in
            ["", "file:///etc/passwd", "ftp://x/y", "javascript:1", "http://", "https:///x", "/a b"]
        {
            assert_eq!(resolved(location), None, "{location}");
        }
    }

    #[test]
    fn origins() {
        let hub = uri("https://hub.test/x");
        assert!(same_origin(&hub, &uri("https://HUB.test:443/y")));
        for other in [
            "http://hub.test/x",
            "https://hub.test:444/x",
            "https://cdn.hub.test/x",
            "https://hub.test.evil/x",
        ] {
            assert!(!same_origin(&hub, &uri(other)), "{other}");
        }
        for host in ["http://localhost/", "http://127.0.0.9:1/", "http://[::1]:2/"] {
            assert!(is_loopback(&uri(host)), "{host}");
        }
        assert!(!is_loopback(&uri("http://localhost.test/")) && !is_loopback(&uri("http://10.0.0.1/")));
    }

    #[test]
    fn addresses_are_shown_without_secrets_and_sent_encoded() {
        assert_eq!(shown_url("https://me:pw@h.test:1/a?X-Signature=s#f"), "https://h.test:1/a");
        assert_eq!(shown_url("https://h.test"), "https://h.test");
        assert_eq!(percent_encoded("a b/ü?#%.gguf"), "a%20b/%C3%BC%3F%23%25.gguf");
    }

    #[test]
    fn endpoints_are_checked() {
        assert_eq!(checked_endpoint(" http://h.test:80/base/ ").unwrap(), "http://h.test:80/base");
        for text in [
            "",
            "h.test",
            "ftp://h.test",
            "http://",
            "https://me:pw@h.test",
            "http://h.test/?a=b",
            "http://h t/",
        ] {
            let error = checked_endpoint(text).unwrap_err();
            assert!(
                matches!(error, HubError::BadSetting { .. }) && !error.to_string().contains("pw"),
                "{text}"
            );
        }
    }
}
