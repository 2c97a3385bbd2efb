//! Requests that wait for their client, each behind a token: random, good once and
//! for a while.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Random bytes of a token.
const BYTES: usize = 16;

/// There are as many tokens as there may be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} streaming requests wait for their clients already; try again in a minute")]
pub struct TooMany(pub usize);

/// The requests.
#[derive(Debug)]
pub(crate) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
    life: Duration,
    limit: usize,
}

impl<T> Tokens<T> {
    pub(crate) fn new(limit: usize, life: Duration) -> Self {
        Self {
            waiting: Mutex::new(HashMap::new()),
            life,
            limit,
        }
    }

    /// Keeps a request; returns its token.
    pub(crate) fn put(&self, request: T) -> Result<String, TooMany> {
        let mut bytes = [0; BYTES];
        // Fails only where its arguments are wrong; interrupted calls are repeated.
        while rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
            != Ok(BYTES)
        {}
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        waiting.retain(|_, (until, _)| *until > now);
        if waiting.len() >= self.limit {
            return Err(TooMany(waiting.len()));
        }
        waiting.insert(token.clone(), (now + self.life, request));
        Ok(token)
    }

    /// The request of a token, if `fits`; the token is worth nothing afterwards.
    pub(crate) fn take(&self, token: &str, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, request) = waiting.get(token)?;
        if *until <= Instant::now() || !fits(request) {
            return None;
        }
        waiting.remove(token).map(|(_, request)| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tokio::time::advance;

    const LIFE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn token_is_good_once_and_for_its_life() {
        let tokens = Tokens::new(10, LIFE);
        let token = tokens.put(1).unwrap();
        assert_eq!(tokens.take("", |_| true), None);
        assert_eq!(tokens.take(&token, |&n| n == 2), None);
        assert_eq!(tokens.take(&token, |&n| n == 1), Some(1));
        assert_eq!(tokens.take(&token, |_| true), None);
        let token = tokens.put(2).unwrap();
        advance(LIFE).await;
        assert_eq!(tokens.take(&token, |_| true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn number_is_bounded_and_expiry_makes_room() {
        let tokens = Tokens::new(3, LIFE);
        for n in 0..3 {
            tokens.put(n).unwrap();
        }
        assert_eq!(tokens.put(3), Err(TooMany(3)));
        advance(LIFE).await;
        tokens.put(4).unwrap();
    }

    #[test]
    fn tokens_are_128_random_bits_that_fit_a_url() {
        let tokens = Tokens::new(1000, LIFE);
        let made: HashSet<_> = (0..1000).map(|n| tokens.put(n).unwrap()).collect();
        assert_eq!(made.len(), 1000);
        for token in made {
            assert_eq!(token.len(), 22);
            let fits = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
            assert!(token.bytes().all(fits), "{token}");
        }
    }
}
