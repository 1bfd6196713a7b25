//! Connections that break.

use std::time::{Duration, Instant};

use runtara_oci_pull::PullError;

use crate::content::{Content, noise};
use crate::failures::{check_whole, registry, with_layer};
use crate::fake::{End, Reply};
use crate::{options, pulled};

#[tokio::test]
async fn what_breaks_off_is_continued_where_it_broke_off() {
    for end in [End::Cut, End::Stall] {
        let (result, asked) = with_layer(move |reply, before| match before {
            0 => reply.ending(end, 20_000),
            _ => reply,
        })
        .await;
        check_whole(result);
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0].header("range"), None);
        let range = asked[1].header("range").unwrap();
        let first: usize = range["bytes=".len()..range.len() - 1].parse().unwrap();
        assert!((1..=20_000).contains(&first), "{range}");
    }
}

#[tokio::test]
async fn what_breaks_off_often_is_pulled_as_long_as_it_goes_on() {
    const PART: usize = 1_200_000;
    let mut content = Content::default();
    let image = content.image("linux/amd64", "/app", &[&noise(6 * PART)]);
    content.tag("1", &image);
    let (layer, original) = (content.layer(0), content.clone());
    let (fake, reference) = registry(&content, move |asked, _| {
        let reply = original.answer(asked);
        let is_long = asked.target.ends_with(&layer) && reply.body.len() > PART;
        is_long.then(|| reply.ending(End::Cut, PART))
    })
    .await;
    check_whole(pulled(&reference, &options()).await);
    let asked = fake.asked();
    let ranges = asked.iter().filter(|asked| asked.header("range").is_some());
    assert!(ranges.count() >= 6);
}

#[tokio::test]
async fn a_registry_that_cannot_continue_is_asked_for_the_whole() {
    let content = Content::simple();
    let whole = content.bytes(&content.layer(0)).to_vec();
    let (result, asked) = with_layer(move |reply, before| match before {
        0 => reply.ending(End::Cut, 20_000),
        _ => Reply::new(200, whole.clone()),
    })
    .await;
    check_whole(result);
    assert_eq!(asked.len(), 2);
    let (result, _) = with_layer(|reply, before| match before {
        0 => reply.ending(End::Cut, 20_000),
        _ => {
            let mut reply = reply;
            reply.headers.clear();
            reply.header("content-range", "bytes 5-9/100")
        }
    })
    .await;
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("comes in another part than was asked for"),
        "{error}"
    );
}

#[tokio::test]
async fn what_breaks_off_for_ever_is_given_up() {
    let began = Instant::now();
    let (result, asked) = with_layer(|reply, _| reply.ending(End::Stall, 0)).await;
    let error = result.unwrap_err();
    assert!(matches!(error, PullError::Stalled { .. }), "{error}");
    assert!(error.is_unreachable());
    assert_eq!(asked.len(), 4);
    assert!(began.elapsed() < Duration::from_secs(20));
    let (result, asked) = with_layer(|reply, _| reply.ending(End::Cut, 0)).await;
    let error = result.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
    assert_eq!(asked.len(), 4);
}
