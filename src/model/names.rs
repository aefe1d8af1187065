//! Names that were probably meant.

/// The known name that `name` is probably a slip of, if any is close enough.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 2).max(2);
    closest(name, known).filter(|k| {
        let distance = strsim::damerau_levenshtein(name, k);
        let shares = k.starts_with(name) || name.starts_with(k) || k.ends_with(name);
        shares || (distance <= limit && distance < k.chars().count().max(2))
    })
}

/// Asks whether that name was meant; of none that is close enough, nothing.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |n| format!("did you mean `{n}`?"))
}

/// The known name closest to `name`, however far.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().min_by_key(|k| (strsim::damerau_levenshtein(name, k), *k))
}
