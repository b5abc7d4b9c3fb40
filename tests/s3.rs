//! The S3 backend against a store that misbehaves: each fault of the network or the store, and what is made of it.
//!
//! The store is a small one in this process that speaks as much S3 as the backend does. The same backend on a real MinIO:
//! tests/backends.rs.
#![cfg(feature = "s3")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use vault::backend::{Backend, BackendError, OBJECT_BYTES_MAX, S3, S3Keys, S3Options, S3Times};

const SECRET: &str = "secret-canary-31f0";
const TOKEN: &str = "token-canary-77aa";

// ---- puts --------------------------------------------------------------------------------------------------------

#[test]
fn a_put_asks_for_a_new_object_and_proves_its_bytes() {
    let fake = Fake::start(|_, _| None);
    fake.store().put("packs/00/a", Bytes::from_static(b"some bytes")).unwrap();
    let requests = fake.requests();
    assert_eq!(requests.len(), 1, "a put is one request: {requests:?}");
    let put = &requests[0];
    assert_eq!(
        (put.method.as_str(), put.path.as_str()),
        ("PUT", "/bucket/some/prefix/packs/00/a"),
        "addressed by path"
    );
    assert_eq!(put.header("if-none-match"), Some("*"));
    assert_eq!(put.header("x-amz-checksum-crc32"), Some(crc32_header(b"some bytes").as_str()));
    assert_eq!(put.header("content-encoding"), None, "the body is the bytes themselves");
    assert_eq!(put.header("content-length"), Some("10"));
    assert_eq!(put.header("transfer-encoding"), None);
    assert!(put.header("authorization").unwrap().contains("x-amz-checksum-crc32"), "the checksum is signed");
    assert_eq!(fake.object("packs/00/a").unwrap(), b"some bytes");
}

#[test]
fn a_put_whose_answer_was_lost_succeeds() {
    let fake = Fake::start(|request, n| (request.method == "PUT" && n == 0).then_some(Misbehave::LoseAnswer));
    fake.store().put("a", Bytes::from_static(b"mine")).unwrap();
    assert_eq!(fake.count("PUT"), 2, "the SDK tried again");
    assert_eq!(fake.object("a").unwrap(), b"mine");
}

#[test]
fn a_put_whose_answer_was_lost_succeeds_where_no_metadata_is_kept() {
    for bytes in [&b"mine"[..], b""] {
        let fake = Fake::start(|request, n| (request.method == "PUT" && n == 0).then_some(Misbehave::LoseAnswer));
        fake.keep_no_metadata();
        fake.store().put("a", Bytes::copy_from_slice(bytes)).unwrap();
        assert_eq!(fake.count("PUT"), 2);
    }
}

#[test]
fn a_put_that_another_one_overtook_between_attempts_is_refused() {
    for theirs in [&b"theirs"[..], b"mine"] {
        // The first attempt is lost before it is stored; somebody else's object is there by the second.
        let fake = Fake::start(move |request, n| {
            let first = request.method == "PUT" && n == 0;
            first.then(|| Misbehave::StoreOthers(theirs.to_vec()))
        });
        let outcome = fake.store().put("a", Bytes::from_static(b"mine"));
        assert!(matches!(outcome, Err(BackendError::AlreadyExists { .. })), "even equal bytes: {outcome:?}");
        assert_eq!(fake.object("a").unwrap(), theirs);
    }
}

#[test]
fn a_second_put_of_equal_bytes_is_refused_at_the_first_attempt() {
    let fake = Fake::start(|_, _| None);
    let store = fake.store();
    store.put("a", Bytes::from_static(b"same")).unwrap();
    let outcome = store.put("a", Bytes::from_static(b"same"));
    assert!(matches!(outcome, Err(BackendError::AlreadyExists { .. })), "{outcome:?}");
    assert_eq!(fake.requests().len(), 2, "nothing is compared");
}

#[test]
fn what_may_pass_is_tried_again() {
    for (status, code) in [
        (500, "InternalError"),
        (502, ""),
        (503, "SlowDown"),
        (503, "ServiceUnavailable"),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
        (408, "RequestTimeout"),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "XAmzContentChecksumMismatch"),
    ] {
        let fake = Fake::start(move |_, n| (n < 3).then(|| Misbehave::Error(status, code.to_owned())));
        fake.store().put("a", Bytes::from_static(b"x")).unwrap_or_else(|error| panic!("{status} {code}: {error}"));
        assert_eq!(fake.requests().len(), 4, "{status} {code}");
        assert_eq!(fake.object("a").unwrap(), b"x");
    }
}

#[test]
fn what_does_not_pass_is_given_up_after_five_attempts() {
    for (status, code) in
        [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests"), (409, "OperationAborted")]
    {
        let fake = Fake::start(move |_, _| Some(Misbehave::Error(status, code.to_owned())));
        let error = fake.store().put("a", Bytes::from_static(b"x")).unwrap_err();
        assert!(matches!(error, BackendError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains(code), "{error} says what the store said");
        assert_eq!(fake.requests().len(), 5, "{status} {code}");
    }
    let fake = Fake::start(|_, _| Some(Misbehave::Error(400, "BadDigest".to_owned())));
    let error = fake.store().put("a", Bytes::from_static(b"x")).unwrap_err();
    assert!(matches!(error, BackendError::Damaged { .. }), "{error:?}");
}

#[test]
fn connections_that_break_or_hang_are_tried_again() {
    for misbehave in [Misbehave::Hang, Misbehave::CloseAtOnce, Misbehave::LoseAnswer] {
        let fake = Fake::start({
            let misbehave = misbehave.clone();
            move |_, n| (n < 2).then(|| misbehave.clone())
        });
        fake.store().put("a", Bytes::from_static(b"x")).unwrap_or_else(|error| panic!("{misbehave:?}: {error}"));
        assert_eq!(fake.object("a").unwrap(), b"x");
        let fake = Fake::start({
            let misbehave = misbehave.clone();
            move |_, _| Some(misbehave.clone())
        });
        let store = fake.store();
        for outcome in
            [store.put("a", Bytes::new()).err(), store.get("a", None).err(), store.list("", &mut |_| Ok(())).err()]
        {
            assert!(matches!(outcome, Some(BackendError::Unreachable { .. })), "{misbehave:?}: {outcome:?}");
        }
    }
}

#[test]
fn an_endpoint_that_is_down_is_unreachable_and_named() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = open(&format!("http://{address}"));
    let outcomes = [
        store.put("a", Bytes::new()).err(),
        store.get("a", None).err(),
        store.list("", &mut |_| Ok(())).err(),
        store.delete("a").err(),
    ];
    for outcome in outcomes {
        let error = outcome.expect("nothing listens there");
        assert!(matches!(error, BackendError::Unreachable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
    }
}

#[test]
fn a_put_on_a_slow_line_is_not_given_up() {
    let fake = Fake::start(|_, _| Some(Misbehave::ReadSlowly));
    // 64 pauses of 50 ms: longer than a stall may be, but never still.
    fake.store().put("a", Bytes::from(vec![7; 16 << 20])).unwrap();
    assert_eq!(fake.count("PUT"), 1, "one attempt");
}

#[test]
fn a_put_on_which_nothing_moves_is_given_up() {
    let fake = Fake::start(|_, n| (n < 2).then_some(Misbehave::ReadNothing));
    let begun = std::time::Instant::now();
    fake.store().put("a", Bytes::from(vec![7; 16 << 20])).unwrap();
    assert_eq!(fake.count("PUT"), 3, "two stalled");
    // Without the watch on the stream each attempt takes as long as 16 MiB may: nine minutes.
    assert!(begun.elapsed() < Duration::from_secs(300), "took {:?}", begun.elapsed());
}

#[test]
fn the_time_of_a_put_is_that_of_the_stores_answer() {
    let fake = Fake::start(|_, _| Some(Misbehave::Date("Sun, 06 Nov 1994 08:49:37 GMT".to_owned())));
    let receipt = fake.store().put("a", Bytes::new()).unwrap();
    assert_eq!(receipt.store_time.to_string(), "1994-11-06T08:49:37Z");
}

#[test]
fn an_answer_with_another_checksum_is_not_believed() {
    let answer = |body: &'static [u8]| {
        move |request: &Request, _| {
            (request.method == "PUT").then(|| Misbehave::StoreAs(body.to_vec(), "AAAAAA==".to_owned()))
        }
    };
    let fake = Fake::start(answer(b"mine"));
    fake.store().put("a", Bytes::from_static(b"mine")).unwrap_or_else(|error| panic!("the bytes are right: {error}"));
    assert_eq!(fake.count("GET"), 1, "it looked");
    let fake = Fake::start(answer(b"mime"));
    let outcome = fake.store().put("a", Bytes::from_static(b"mine"));
    assert!(matches!(outcome, Err(BackendError::Damaged { .. })), "{outcome:?}");
}

// ---- what stores refuse ------------------------------------------------------------------------------------------

#[test]
fn a_denied_call_names_the_right_it_needs_and_is_not_repeated() {
    let fake = Fake::start(|_, _| Some(Misbehave::Error(403, "AccessDenied".to_owned())));
    let store = fake.store();
    for (outcome, action, right) in [
        (store.put("a", Bytes::new()).err(), "put", "s3:PutObject"),
        (store.get("a", None).err(), "get", "s3:GetObject"),
        (store.list("", &mut |_| Ok(())).err(), "list", "s3:ListBucket"),
        (store.delete("a").err(), "delete", "s3:DeleteObject"),
    ] {
        let error = outcome.expect("denied");
        assert!(matches!(&error, BackendError::Denied { action: said, .. } if *said == action), "{error:?}");
        assert!(error.to_string().contains(right), "{error}");
    }
    // A delete looks first, and tries all the same if it may not look.
    assert_eq!(fake.requests().len(), 5, "one request each, two for the delete");
}

#[test]
fn who_may_delete_and_not_read_can_delete() {
    let fake =
        Fake::start(|request, _| (request.method == "GET").then(|| Misbehave::Error(403, "AccessDenied".to_owned())));
    let store = fake.store();
    store.put("a", Bytes::from_static(b"x")).unwrap();
    assert!(store.delete("a").unwrap());
    assert_eq!(fake.object("a"), None);
}

#[test]
fn each_answer_has_its_error() {
    type Check = fn(&BackendError) -> bool;
    let cases: &[(u16, &str, Check, &str)] = &[
        (404, "NoSuchBucket", |e| matches!(e, BackendError::NoStore { .. }), "mb s3://bucket"),
        (403, "InvalidAccessKeyId", |e| matches!(e, BackendError::Denied { .. }), "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", |e| matches!(e, BackendError::Denied { .. }), "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", |e| matches!(e, BackendError::Denied { .. }), "expired"),
        (301, "PermanentRedirect", |e| matches!(e, BackendError::Other { .. }), "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", |e| matches!(e, BackendError::Other { .. }), "AWS_REGION"),
        (507, "XMinioStorageFull", |e| matches!(e, BackendError::NoSpace { .. }), "no space"),
        (400, "XMinioAdminBucketQuotaExceeded", |e| matches!(e, BackendError::NoSpace { .. }), "no space"),
        (501, "NotImplemented", |e| matches!(e, BackendError::Other { .. }), "NotImplemented"),
        (400, "InvalidBucketName", |e| matches!(e, BackendError::Other { .. }), "InvalidBucketName"),
        (418, "", |e| matches!(e, BackendError::Other { .. }), "418"),
    ];
    for (status, code, check, says) in cases {
        let fake = Fake::start(move |_, _| Some(Misbehave::Error(*status, (*code).to_owned())));
        let error = fake.store().put("a", Bytes::new()).unwrap_err();
        assert!(check(&error), "{status} {code}: {error:?}");
        assert!(error.to_string().contains(says), "{status} {code}: {error}");
    }
}

#[test]
fn a_404_that_no_store_said_is_not_a_missing_object() {
    let fake = Fake::start(|_, _| Some(Misbehave::Raw(404, "<html>not here</html>".to_owned())));
    let outcome = fake.store().get("a", None);
    assert!(matches!(outcome, Err(BackendError::Other { .. })), "some proxy said so: {outcome:?}");
}

#[test]
fn no_secret_is_in_any_error_or_request() {
    let echo = format!("your secret is {SECRET} and your token {TOKEN}");
    let fake = Fake::start(move |_, _| Some(Misbehave::Message(403, "AccessDenied".to_owned(), echo.clone())));
    let store = fake.store();
    let errors = [
        store.put("a", Bytes::new()).unwrap_err(),
        store.get("a", None).unwrap_err(),
        store.list("", &mut |_| Ok(())).unwrap_err(),
        store.delete("a").unwrap_err(),
    ];
    for error in errors {
        let text = format!("{error} {error:?}");
        assert!(!text.contains(SECRET) && !text.contains(TOKEN), "{text}");
        assert!(text.contains("[redacted]"), "{text}");
    }
    assert!(fake.requests().iter().all(|request| !format!("{request:?}").contains(SECRET)));
}

// ---- gets --------------------------------------------------------------------------------------------------------

#[test]
fn a_body_that_breaks_off_is_asked_for_again() {
    let fake = Fake::start(|request, n| (request.method == "GET" && n < 3).then_some(Misbehave::CutBody(700)));
    fake.set("a", &[7; 1000]);
    assert_eq!(fake.store().get("a", None).unwrap(), vec![7; 1000]);
    assert_eq!(fake.count("GET"), 4);

    let fake = Fake::start(|request, _| (request.method == "GET").then_some(Misbehave::CutBody(700)));
    fake.set("a", &[7; 1000]);
    for range in [None, Some(10..900)] {
        let outcome = fake.store().get("a", range);
        assert!(matches!(outcome, Err(BackendError::Unreachable { .. })), "{outcome:?}");
    }
    assert_eq!(fake.count("GET"), 10, "five attempts each");
}

#[test]
fn a_body_that_stalls_is_asked_for_again() {
    let fake = Fake::start(|request, n| (request.method == "GET" && n < 2).then_some(Misbehave::StallBody(700)));
    fake.set("a", &[7; 1000]);
    assert_eq!(fake.store().get("a", None).unwrap(), vec![7; 1000]);
    assert_eq!(fake.count("GET"), 3);
}

#[test]
fn bytes_that_do_not_fit_the_stored_checksum_are_damage() {
    let flip = |request: &Request, n: usize, until: usize| {
        (request.method == "GET" && n < until).then_some(Misbehave::FlipBody)
    };
    let fake = Fake::start(move |request, n| flip(request, n, 1));
    fake.set("a", &[7; 1000]);
    assert_eq!(fake.store().get("a", None).unwrap(), vec![7; 1000], "on the way, once");
    let fake = Fake::start(move |request, n| flip(request, n, 99));
    fake.set("a", &[7; 1000]);
    let outcome = fake.store().get("a", None);
    assert!(matches!(outcome, Err(BackendError::Damaged { .. })), "each time: {outcome:?}");
}

#[test]
fn a_store_that_ignores_ranges_still_gives_the_right_bytes() {
    let fake = Fake::start(|request, _| (request.method == "GET").then_some(Misbehave::IgnoreRange));
    fake.set("a", b"0123456789");
    assert_eq!(fake.store().get("a", Some(3..7)).unwrap(), "3456");
    let outcome = fake.store().get("a", Some(3..11));
    assert!(matches!(outcome, Err(BackendError::ShortRange { actual_bytes: 10, .. })), "{outcome:?}");
}

#[test]
fn another_range_than_was_asked_for_is_an_error() {
    let fake = Fake::start(|request, _| (request.method == "GET").then_some(Misbehave::ShiftRange));
    fake.set("a", b"0123456789");
    let outcome = fake.store().get("a", Some(3..7));
    assert!(matches!(outcome, Err(BackendError::Other { .. })), "{outcome:?}");
}

#[test]
fn an_object_said_to_be_huge_takes_no_memory() {
    let fake = Fake::start(|request, _| (request.method == "GET").then_some(Misbehave::ClaimBytes(1 << 40)));
    fake.set("a", b"x");
    let outcome = fake.store().get("a", None);
    assert!(matches!(outcome, Err(BackendError::Damaged { .. })), "{outcome:?}");
    let fake = Fake::start(|request, _| {
        (request.method == "GET").then_some(Misbehave::ClaimBytes(OBJECT_BYTES_MAX as u64 + 1))
    });
    fake.set("a", b"x");
    assert!(matches!(fake.store().get("a", None), Err(BackendError::Damaged { .. })));
}

// ---- lists -------------------------------------------------------------------------------------------------------

/// One object of a listing's page.
fn entry(key: &str) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>\"e\"</ETag>\
         <Size>1</Size></Contents>"
    )
}

fn page(keys: &[&str], count: usize, rest: &str) -> String {
    let contents: String = keys.iter().map(|key| entry(&format!("some/prefix/{key}"))).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>bucket</Name><Prefix>some/prefix/</Prefix><KeyCount>{count}</KeyCount>{rest}{contents}</ListBucketResult>"
    )
}

const LAST: &str = "<IsTruncated>false</IsTruncated>";
const MORE: &str = "<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>";

fn list_of(pages: Vec<String>) -> Result<Vec<String>, BackendError> {
    let fake = Fake::start(move |_, n| Some(Misbehave::Raw(200, pages[n.min(pages.len() - 1)].clone())));
    let mut names = Vec::new();
    fake.store().list("", &mut |object| {
        names.push(object.name);
        Ok(())
    })?;
    Ok(names)
}

#[test]
fn pages_are_joined() {
    let names = list_of(vec![page(&["a", "b"], 2, MORE), page(&["c"], 1, LAST)]).unwrap();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn what_cannot_be_an_object_is_left_out() {
    let names = list_of(vec![page(&["UPPER", "a", "b c", "folder/"], 4, LAST)]).unwrap();
    assert_eq!(names, ["a"]);
}

#[test]
fn a_listing_that_is_not_whole_is_an_error() {
    for (story, pages) in [
        ("an empty answer", vec![String::new()]),
        ("a page of a proxy", vec!["<html><body>please log in</body></html>".to_owned()]),
        ("an empty listing that is none", vec!["<ListBucketResult></ListBucketResult>".to_owned()]),
        ("an error inside a success", vec!["<Error><Code>InternalError</Code></Error>".to_owned()]),
        ("cut off in the middle", vec![page(&["a", "b"], 2, LAST)[..300].to_owned()]),
        ("fewer objects than it counts", vec![page(&["a"], 2, LAST)]),
        ("more objects than it counts", vec![page(&["a", "b"], 1, LAST)]),
        ("truncated without a way on", vec![page(&["a"], 1, "<IsTruncated>true</IsTruncated>")]),
        ("the same page again", vec![page(&["a"], 1, MORE), page(&["a"], 1, MORE)]),
        ("the same token again", vec![page(&["a"], 1, MORE), page(&["b"], 1, MORE), page(&["c"], 1, LAST)]),
        ("an empty page that goes on", vec![page(&[], 0, MORE)]),
        ("out of order", vec![page(&["b", "a"], 2, LAST)]),
        ("one object twice", vec![page(&["a", "a"], 2, LAST)]),
        ("an object from elsewhere", vec![page(&["a"], 1, LAST).replace("<Key>some/", "<Key>other/")]),
        ("an object without size", vec![page(&["a"], 1, LAST).replace("<Size>1</Size>", "")]),
        ("an object of negative size", vec![page(&["a"], 1, LAST).replace("<Size>1<", "<Size>-1<")]),
        ("an object without time", vec![page(&["a"], 1, LAST).replace("LastModified", "Whatever")]),
    ] {
        let outcome = list_of(pages);
        assert!(
            matches!(outcome, Err(BackendError::Other { .. } | BackendError::Unreachable { .. })),
            "{story}: {outcome:?}"
        );
    }
}

// ---- the store that misbehaves -----------------------------------------------------------------------------------

fn open(endpoint: &str) -> S3 {
    let times = S3Times {
        connect: Duration::from_secs(5),
        attempt: Duration::from_millis(700),
        stall: Duration::from_millis(700),
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
    };
    let keys = S3Keys {
        access_key_id: "key".to_owned(),
        secret_access_key: SECRET.to_owned().into(),
        session_token: Some(TOKEN.to_owned().into()),
    };
    let options = S3Options {
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        keys: Some(keys),
        times,
    };
    S3::open("bucket", "some/prefix", options).unwrap()
}

#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the store does wrong with one request.
#[derive(Debug, Clone)]
enum Misbehave {
    /// Answers with this status and an S3 error of this code; nothing is done.
    Error(u16, String),
    /// The same with a message.
    Message(u16, String, String),
    /// Answers with these bytes.
    Raw(u16, String),
    /// Does it and closes the connection without an answer.
    LoseAnswer,
    /// Closes the connection; nothing is done.
    CloseAtOnce,
    /// Never answers; nothing is done.
    Hang,
    /// Takes nothing of the body; or little at a time, but all.
    ReadNothing,
    ReadSlowly,
    /// Stores another put's bytes under the name and closes the connection.
    StoreOthers(Vec<u8>),
    /// Stores these bytes instead and answers with this checksum.
    StoreAs(Vec<u8>, String),
    Date(String),
    /// Sends so many bytes of a body and closes, or sends nothing more, or turns over a bit of it.
    CutBody(usize),
    StallBody(usize),
    FlipBody,
    IgnoreRange,
    ShiftRange,
    /// Speaks of a body this long.
    ClaimBytes(u64),
}

type Plan = dyn Fn(&Request, usize) -> Option<Misbehave> + Send + Sync;

/// A bucket on a loopback port. The plan sees each request and its number, from 0.
struct Fake {
    state: Arc<State>,
    endpoint: String,
}

/// Bytes and `x-amz-meta-put`.
type Object = (Vec<u8>, Option<String>);

struct State {
    plan: Box<Plan>,
    requests: Mutex<Vec<Request>>,
    objects: Mutex<BTreeMap<String, Object>>,
    keeps_metadata: Mutex<bool>,
}

impl Fake {
    fn start(plan: impl Fn(&Request, usize) -> Option<Misbehave> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            plan: Box::new(plan),
            requests: Mutex::default(),
            objects: Mutex::default(),
            keeps_metadata: Mutex::new(true),
        });
        // Ends with the test's process.
        thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let state = state.clone();
                    thread::spawn(move || while state.serve(&stream).is_ok_and(|go_on| go_on) {});
                }
            }
        });
        Self { state, endpoint }
    }

    fn store(&self) -> S3 {
        open(&self.endpoint)
    }

    fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    fn count(&self, method: &str) -> usize {
        self.requests().iter().filter(|request| request.method == method).count()
    }

    fn object(&self, name: &str) -> Option<Vec<u8>> {
        let key = format!("/bucket/some/prefix/{name}");
        self.state.objects.lock().unwrap().get(&key).map(|(bytes, _)| bytes.clone())
    }

    fn set(&self, name: &str, bytes: &[u8]) {
        let key = format!("/bucket/some/prefix/{name}");
        self.state.objects.lock().unwrap().insert(key, (bytes.to_vec(), None));
    }

    fn keep_no_metadata(&self) {
        *self.state.keeps_metadata.lock().unwrap() = false;
    }
}

impl State {
    /// Answers one request; says whether the connection stays open.
    fn serve(&self, stream: &TcpStream) -> std::io::Result<bool> {
        let mut reader = BufReader::new(stream);
        let Some(mut request) = read_head(&mut reader)? else { return Ok(false) };
        let number = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1 // without its body
        };
        let misbehave = (self.plan)(&request, number);
        match misbehave {
            Some(Misbehave::ReadNothing) => {
                thread::sleep(Duration::from_secs(3600));
                return Ok(false);
            }
            Some(Misbehave::ReadSlowly) => read_body(&mut reader, &mut request, Duration::from_millis(50))?,
            _ => read_body(&mut reader, &mut request, Duration::ZERO)?,
        }
        let error = |status: u16, code: &str, message: &str| {
            let body = if code.is_empty() {
                String::new()
            } else {
                format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
            };
            answer(stream, status, &[], body.as_bytes(), None)
        };
        match &misbehave {
            Some(Misbehave::Error(status, code)) => return error(*status, code, "as the test wanted"),
            Some(Misbehave::Message(status, code, message)) => return error(*status, code, message),
            Some(Misbehave::Raw(status, body)) => return answer(stream, *status, &[], body.as_bytes(), None),
            Some(Misbehave::CloseAtOnce) => return Ok(false),
            Some(Misbehave::LoseAnswer) if request.method == "GET" => return Ok(false),
            Some(Misbehave::Hang) => {
                thread::sleep(Duration::from_secs(5));
                return Ok(false);
            }
            Some(Misbehave::StoreOthers(bytes)) => {
                let theirs = (bytes.clone(), Some("another put".to_owned()));
                self.objects.lock().unwrap().insert(request.path.clone(), theirs);
                return Ok(false);
            }
            _ => {}
        }
        let mut objects = self.objects.lock().unwrap();
        match request.method.as_str() {
            "PUT" if request.header("if-none-match") == Some("*") && objects.contains_key(&request.path) => {
                if matches!(misbehave, Some(Misbehave::LoseAnswer)) {
                    return Ok(false);
                }
                error(412, "PreconditionFailed", "it is there")
            }
            "PUT" => {
                let mark = request.header("x-amz-meta-put").map(str::to_owned);
                let mark = mark.filter(|_| *self.keeps_metadata.lock().unwrap());
                let (bytes, checksum) = match &misbehave {
                    Some(Misbehave::StoreAs(bytes, checksum)) => (bytes.clone(), checksum.clone()),
                    _ => (request.body.clone(), crc32_header(&request.body)),
                };
                objects.insert(request.path.clone(), (bytes, mark));
                let date = match &misbehave {
                    Some(Misbehave::LoseAnswer) => return Ok(false),
                    Some(Misbehave::Date(date)) => date.clone(),
                    _ => "Thu, 01 Jan 2026 00:00:00 GMT".to_owned(),
                };
                answer(stream, 200, &[("Date", date), ("x-amz-checksum-crc32", checksum)], b"", None)
            }
            "DELETE" => {
                objects.remove(&request.path);
                answer(stream, 204, &[], b"", None)
            }
            _ => {
                let Some((bytes, mark)) = objects.get(&request.path).cloned() else {
                    return error(404, "NoSuchKey", "it is not there");
                };
                drop(objects);
                send_object(stream, &request, &bytes, mark, misbehave.as_ref())
            }
        }
    }
}

fn send_object(
    stream: &TcpStream,
    request: &Request,
    bytes: &[u8],
    mark: Option<String>,
    misbehave: Option<&Misbehave>,
) -> std::io::Result<bool> {
    let mut headers = Vec::new();
    if let Some(mark) = mark {
        headers.push(("x-amz-meta-put", mark));
    }
    let range = request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let shift = usize::from(matches!(misbehave, Some(Misbehave::ShiftRange)));
    let (status, mut body) = match range {
        Some((first, _)) if first >= bytes.len() => return answer(stream, 416, &[], b"", None),
        Some((first, last)) if !matches!(misbehave, Some(Misbehave::IgnoreRange)) => {
            let (first, last) = (first + shift, (last + shift).min(bytes.len() - 1));
            headers.push(("Content-Range", format!("bytes {first}-{last}/{}", bytes.len())));
            (206, bytes[first..=last].to_vec())
        }
        _ => {
            headers.push(("x-amz-checksum-crc32", crc32_header(bytes)));
            (200, bytes.to_vec())
        }
    };
    if let Some(Misbehave::FlipBody) = misbehave {
        body[0] ^= 1;
    }
    answer(stream, status, &headers, &body, misbehave)
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let path = target.split('?').next().unwrap_or("").to_owned();
    Ok(Some(Request { method, path, headers, body: Vec::new() }))
}

/// Reads the body, 256 KiB at a time with a pause after each.
fn read_body(reader: &mut BufReader<&TcpStream>, request: &mut Request, pause: Duration) -> std::io::Result<()> {
    if request.header("expect") == Some("100-continue") {
        reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let len = request.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    request.body.resize(len, 0);
    for part in request.body.chunks_mut(256 << 10) {
        reader.read_exact(part)?;
        thread::sleep(pause);
    }
    Ok(())
}

fn answer(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    misbehave: Option<&Misbehave>,
) -> std::io::Result<bool> {
    let len = match misbehave {
        Some(Misbehave::ClaimBytes(len)) => *len,
        _ => body.len() as u64,
    };
    let mut head = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {len}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    match misbehave {
        Some(Misbehave::CutBody(at)) => stream.write_all(&body[..body.len().min(*at)]).map(|()| false),
        Some(Misbehave::StallBody(at)) => {
            stream.write_all(&body[..body.len().min(*at)])?;
            thread::sleep(Duration::from_secs(5));
            Ok(false)
        }
        _ => stream.write_all(body).map(|()| true),
    }
}

/// The CRC32 of `bytes` as S3 writes it.
fn crc32_header(bytes: &[u8]) -> String {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    });
    data_encoding::BASE64.encode(&(!crc).to_be_bytes())
}
