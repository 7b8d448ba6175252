//! What follows from a token; whole connections are tested with the control plane, in `launcher`.

use crate::{Authority, Bearer, Gate, Refusals, Token, TokenError};
use tonic::service::Interceptor;
use tonic::{Code, Request};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn tokens_are_long_plain_and_never_shown() {
    let token = Token::parse(&format!(" {TOKEN}\n")).unwrap();
    assert_eq!(token.expose(), TOKEN);
    assert_eq!(format!("{token:?}"), "Token(…)");
    assert_eq!(Token::parse("short"), Err(TokenError::Length(5)));
    assert_eq!(Token::parse(&"x".repeat(513)), Err(TokenError::Length(513)));
    assert_eq!(Token::parse(&format!("{TOKEN} {TOKEN}")), Err(TokenError::Characters));
    let made = Token::generate().unwrap();
    assert_eq!(made.expose().len(), 64);
    assert_ne!(made, Token::generate().unwrap());
    assert_eq!(Token::parse(made.expose()).unwrap(), made);
}

#[test]
fn the_gate_lets_the_right_proof_pass_and_nothing_else() {
    let token = Token::parse(TOKEN).unwrap();
    let mut gate = Gate::new(&token, Refusals::default());
    let mut shown = Bearer::of(&token).call(Request::new(())).unwrap();
    let header = shown.metadata().get("authorization").unwrap().clone();
    assert!(!header.to_str().unwrap().contains(TOKEN), "the token itself is not sent");
    assert!(!format!("{header:?}").contains("Bearer"), "headers are printed without it");
    assert!(gate.call(shown).is_ok());
    shown = Bearer::of(&Token::generate().unwrap()).call(Request::new(())).unwrap();
    assert_eq!(gate.call(shown).unwrap_err().code(), Code::Unauthenticated);
    let texts = ["", "Bearer", "Bearer 00", "Basic YTpi", header.to_str().unwrap().split_at(70).0, TOKEN];
    for text in texts {
        let mut request = Request::new(());
        request.metadata_mut().insert("authorization", text.parse().unwrap());
        assert_eq!(gate.call(request).unwrap_err().code(), Code::Unauthenticated, "{text}");
    }
    assert_eq!(gate.call(Request::new(())).unwrap_err().code(), Code::Unauthenticated);
}

#[test]
fn a_token_has_one_authority() {
    let token = Token::parse(TOKEN).unwrap();
    let of = |token: &Token| format!("{:?}", Authority::of(token).unwrap().client());
    assert_eq!(of(&token), of(&token));
    assert_ne!(of(&token), of(&Token::generate().unwrap()));
    Authority::of(&token).unwrap().acceptor().unwrap();
}
