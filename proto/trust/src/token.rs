//! The secret of a job.

use std::fmt;
use std::sync::Arc;
use thiserror::Error;
use tokio_rustls::rustls::crypto::ring;

/// Fewer letters could be guessed: what a certificate of the derived authority shows can be tried against without asking anybody.
const FEWEST: usize = 32;
const MOST: usize = 512;
/// Bytes of a token that is made here.
const MADE_BYTES: usize = 32;

/// Why a text is no token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// It has too few or too many letters.
    #[error("it has {0} characters, and a token has {FEWEST} to {MOST}")]
    Length(usize),
    /// It has something else than visible ASCII characters.
    #[error("it has a space or a character that is no visible ASCII")]
    Characters,
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// The secret that all of a job share. Shown nowhere: `Debug` tells that there is one.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

impl Token {
    /// The token that somebody gave; white space around it does not count.
    ///
    /// # Errors
    /// It is too short, too long, or has other characters than visible ASCII.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        match text.len() {
            FEWEST..=MOST => Ok(Token(text.into())),
            length => Err(TokenError::Length(length)),
        }
    }

    /// A new one, of 64 hexadecimal digits.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Token, TokenError> {
        let mut bytes = [0; MADE_BYTES];
        ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| TokenError::Random)?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Token(digits.into()))
    }

    /// Its letters, for the environment of a process of the job, and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Another secret that follows from it; one for each purpose, none of which tells the token or another.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, self.0.as_bytes())
    }
}
