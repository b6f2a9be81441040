//! Text in the form that class names, prompts and captions are compared in.

/// White space as Python's `str.isspace` has it: Unicode's, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Runs of white space to one blank, none at the ends.
pub(super) fn squeeze(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Without ASCII punctuation.
pub(super) fn strip_punctuation(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_punctuation()).collect()
}

/// Canonical form of a text: `_` to a blank, ASCII punctuation removed except where `keep` stands, Unicode lower case, white
/// space squeezed.
///
/// big_vision canonicalises templates with `keep` = `{}` and class names with `,`. Applying it twice changes nothing.
///
/// ```
/// use ocellus::data::text::canonicalize;
/// assert_eq!(canonicalize("An under_score,  E-mail!", None), "an under score email");
/// assert_eq!(canonicalize("itap of the {}.", Some("{}")), "itap of the {}");
/// ```
pub fn canonicalize(text: &str, keep: Option<&str>) -> String {
    let text = text.replace('_', " ");
    let text = match keep.filter(|keep| !keep.is_empty()) {
        None => strip_punctuation(&text),
        Some(keep) => text.split(keep).map(strip_punctuation).collect::<Vec<_>>().join(keep),
    };
    squeeze(&text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_are_those_of_big_vision() {
        for (text, keep, expected) in [
            ("  two   spaces\tand\ttabs \n", None, "two spaces and tabs"),
            ("don't! stop? (now)", None, "dont stop now"),
            ("ZÜRICH Straße ÉCOLE", None, "zürich straße école"),
            ("{curly} {} {not}", Some("{}"), "curly {} not"),
            ("tench, Tinca tinca", Some(","), "tench, tinca tinca"),
            ("A\u{a0}no-break\u{1f}space", None, "a nobreak space"),
            ("__", None, ""),
            ("a.", Some(""), "a"),
        ] {
            assert_eq!(canonicalize(text, keep), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "[ \\t{},_.A-Za-zÀ-ž#-]{0,40}") {
            for keep in [None, Some("{}"), Some(",")] {
                let once = canonicalize(&text, keep);
                prop_assert_eq!(&canonicalize(&once, keep), &once);
            }
        }
    }
}
