//! What the store promises.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::store::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_waiter_gets_what_is_set_later() {
    runtime().block_on(async {
        let store = Arc::new(Store::default());
        let waiter = tokio::spawn({
            let store = store.clone();
            async move { store.get("rank/1", Duration::from_secs(30)).await }
        });
        tokio::task::yield_now().await;
        store.set("other", b"no".to_vec()).unwrap();
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        store.set("rank/1", b"address".to_vec()).unwrap();
        assert_eq!(waiter.await.unwrap().unwrap(), b"address");
    });
}

#[test]
fn a_deadline_names_the_missing_key() {
    runtime().block_on(async {
        let store = Store::default();
        store.set("here", Vec::new()).unwrap();
        let keys = ["here".to_owned(), "absent".to_owned()];
        let before = Instant::now();
        let error = store.wait(&keys, Duration::from_millis(40)).await.unwrap_err();
        assert_eq!(error, StoreError::DeadlineExceeded { key: "absent".into(), waited_ms: 40 });
        assert!(before.elapsed() >= Duration::from_millis(40));
        assert!(error.to_string().contains("`absent`"));
    });
}

#[test]
fn adding_counts_from_zero_and_refuses_text() {
    let store = Store::default();
    assert_eq!(store.add("count", 3), Ok(3));
    assert_eq!(store.add("count", -5), Ok(-2));
    store.set("text", b"abc".to_vec()).unwrap();
    assert!(matches!(store.add("text", 1), Err(StoreError::NotANumber { .. })));
    store.set("large", i64::MAX.to_string().into_bytes()).unwrap();
    assert!(matches!(store.add("large", 1), Err(StoreError::NotANumber { .. })));
}

#[test]
fn sizes_are_bounded_and_deleting_frees() {
    let store = Store::default();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    assert!(matches!(store.set(&long, Vec::new()), Err(StoreError::KeyTooLong { .. })));
    assert!(matches!(store.set("k", vec![0; MAX_VALUE_BYTES + 1]), Err(StoreError::ValueTooLarge { .. })));
    let fit = MAX_TOTAL_BYTES / (MAX_VALUE_BYTES + 4);
    for index in 0..fit {
        store.set(&format!("{index:04}"), vec![0; MAX_VALUE_BYTES]).unwrap();
    }
    assert!(matches!(store.set("one more", vec![0; MAX_VALUE_BYTES]), Err(StoreError::Full { .. })));
    assert!(store.delete("0000"));
    assert!(!store.delete("0000"));
    store.set("9999", vec![0; MAX_VALUE_BYTES]).unwrap();
    assert_eq!(store.check(&["9999".to_owned()]), Ok(true));
    assert_eq!(store.check(&["9999".to_owned(), "0000".to_owned()]), Ok(false));
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("rank/{index}")).collect()
}

#[test]
fn numbers_are_bounded() {
    let store = Store::default();
    for index in 0..MAX_KEYS {
        store.set(&index.to_string(), Vec::new()).unwrap();
    }
    assert!(matches!(store.set("one more", Vec::new()), Err(StoreError::Full { keys: MAX_KEYS, .. })));
    assert!(matches!(store.add("one more", 1), Err(StoreError::Full { .. })));
    store.set("7", b"again".to_vec()).unwrap();
    assert!(store.delete("0"));
    store.add("one more", 1).unwrap();
    let many = vec!["7".to_owned(); MAX_KEYS_PER_CALL + 1];
    assert!(matches!(store.check(&many), Err(StoreError::TooManyKeys { .. })));
    assert_eq!(store.check(&many[1..]), Ok(true));
    runtime().block_on(async {
        let wait = store.wait(&many, Duration::ZERO).await;
        assert!(matches!(wait, Err(StoreError::TooManyKeys { .. })));
        store.set("8", vec![0; MAX_VALUE_BYTES]).unwrap();
        let large = vec!["8".to_owned(); 3];
        let bytes = 3 * MAX_VALUE_BYTES;
        let error = store.get_all(&large, Duration::ZERO).await.unwrap_err();
        assert_eq!(error, StoreError::AnswerTooLarge { count: 3, bytes });
        assert_eq!(store.get_all(&large[1..], Duration::ZERO).await.unwrap().len(), 2);
    });
}

#[test]
fn all_values_come_in_the_order_that_was_asked_for_whatever_the_order_they_are_set_in() {
    const COUNT: usize = 40;
    runtime().block_on(async {
        for stride in [1, 3, 7, COUNT - 1] {
            let store = Arc::new(Store::default());
            let waiters = (0..COUNT).map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.get_all(&names(COUNT), Duration::from_secs(30)).await })
            });
            let waiters: Vec<_> = waiters.collect();
            for turn in 0..COUNT {
                let key = turn * stride % COUNT;
                tokio::task::yield_now().await;
                assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
                store.set(&format!("rank/{key}"), vec![key as u8]).unwrap();
            }
            for waiter in waiters {
                let expected: Vec<Vec<u8>> = (0..COUNT).map(|key| vec![key as u8]).collect();
                assert_eq!(waiter.await.unwrap().unwrap(), expected);
            }
            assert_eq!(store.awaited(), 0);
        }
    });
}

#[test]
fn a_key_that_is_removed_before_the_others_come_is_waited_for_again() {
    runtime().block_on(async {
        let store = Arc::new(Store::default());
        let waiter = tokio::spawn({
            let store = store.clone();
            async move { store.get_all(&names(2), Duration::from_secs(30)).await }
        });
        tokio::task::yield_now().await;
        store.set("rank/1", b"old".to_vec()).unwrap();
        tokio::task::yield_now().await;
        store.delete("rank/1");
        store.set("rank/0", b"zero".to_vec()).unwrap();
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        store.set("rank/1", b"new".to_vec()).unwrap();
        assert_eq!(waiter.await.unwrap().unwrap(), [b"zero".to_vec(), b"new".to_vec()]);
    });
}

#[test]
fn who_stops_waiting_leaves_nothing_behind() {
    runtime().block_on(async {
        let store = Arc::new(Store::default());
        let wait = |key: &'static str, milliseconds| {
            let store = store.clone();
            tokio::spawn(async move { store.get(key, Duration::from_millis(milliseconds)).await })
        };
        let (cancelled, stays, late) = (wait("key", 30_000), wait("key", 30_000), wait("other", 1));
        tokio::task::yield_now().await;
        assert_eq!(store.awaited(), 2);
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        late.await.unwrap().unwrap_err();
        assert_eq!(store.awaited(), 1);
        store.set("key", b"value".to_vec()).unwrap();
        assert_eq!(stays.await.unwrap().unwrap(), b"value");
        assert_eq!(store.awaited(), 0);
    });
}
