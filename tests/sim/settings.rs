//! Numbers that a developer sets from outside.

/// The environment variable `name`, if it is set. A value that does not parse
/// stops the test: a typing error must not run the default.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.replace('_', "").parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
