//! `${name}` in strings: the whole string keeps the value's JSON type, a part of one is text; `$$`
//! is a dollar sign.

use std::collections::BTreeMap;

use serde_json::Value;

use super::InputError;

/// The fields of an input.
pub(super) type Values = BTreeMap<String, Value>;

/// A piece of a template.
#[derive(PartialEq, Eq, Debug)]
enum Piece<'a> {
    Text(&'a str),
    Field(&'a str),
}

/// Names in templates: `[a-z][a-z0-9_]{0,63}`.
pub(super) fn is_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(rest)
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        if let Some(after) = from.strip_prefix("$$") {
            pieces.push(Piece::Text("$"));
            rest = after;
        } else if let Some(inner) = from.strip_prefix("${") {
            let (name, after) = inner
                .split_once('}')
                .ok_or_else(|| format!("`{text}` has a `${{` without its `}}`"))?;
            if !is_name(name) {
                return Err(format!(
                    "`${{{name}}}` is not a field: names are a-z, 0-9 and `_`, such as ${{vm}}"
                ));
            }
            pieces.push(Piece::Field(name));
            rest = after;
        } else {
            return Err(format!(
                "`{text}` has a single `$`; write `$$` for a dollar sign"
            ));
        }
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

/// Every field that a JSON template names.
///
/// # Errors
/// A string in it is not a template.
pub(super) fn fields(template: &Value) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    visit(template, &mut |text| {
        found.extend(fields_of_text(text)?);
        Ok(())
    })?;
    Ok(found)
}

/// Every field that a text template names.
pub(super) fn fields_of_text(text: &str) -> Result<Vec<String>, String> {
    let names = pieces(text)?.into_iter().filter_map(|piece| match piece {
        Piece::Field(name) => Some(name.to_owned()),
        Piece::Text(_) => None,
    });
    Ok(names.collect())
}

fn visit(template: &Value, look: &mut dyn FnMut(&str) -> Result<(), String>) -> Result<(), String> {
    match template {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().try_for_each(|item| visit(item, look)),
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            // A name is never filled; a template there is a mistake that would show only later.
            if name.contains("${") {
                return Err(format!(
                    "`{name}` is a member's name: `${{…}}` works in values only"
                ));
            }
            visit(value, look)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Fills a JSON template.
pub(super) fn fill(template: &Value, values: &Values) -> Result<Value, InputError> {
    Ok(match template {
        Value::String(text) => match whole(text) {
            Some(name) => value(name, values)?.clone(),
            None => Value::String(fill_text(text, values)?.0),
        },
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| fill(item, values))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(members) => Value::Object(
            members
                .iter()
                .map(|(name, member)| Ok((name.clone(), fill(member, values)?)))
                .collect::<Result<_, InputError>>()?,
        ),
        other => other.clone(),
    })
}

/// Fills a text template; also says which field it took last, for messages.
pub(super) fn fill_text<'a>(
    text: &'a str,
    values: &Values,
) -> Result<(String, Option<&'a str>), InputError> {
    let pieces = pieces(text).map_err(|detail| InputError {
        field: "input".to_owned(),
        detail,
    })?;
    let mut filled = String::new();
    let mut last = None;
    for piece in pieces {
        match piece {
            Piece::Text(part) => filled.push_str(part),
            Piece::Field(name) => {
                last = Some(name);
                match value(name, values)? {
                    Value::String(part) => filled.push_str(part),
                    Value::Number(part) => filled.push_str(&part.to_string()),
                    Value::Bool(part) => filled.push_str(if *part { "true" } else { "false" }),
                    Value::Null | Value::Array(_) | Value::Object(_) => {
                        return Err(InputError::of(
                            name,
                            format!(
                                "becomes a part of `{text}`, so it must be text, a number or true or false"
                            ),
                        ));
                    }
                }
            }
        }
    }
    Ok((filled, last))
}

/// The name, if the string is one field and nothing else.
fn whole(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    is_name(name).then_some(name)
}

fn value<'v>(name: &str, values: &'v Values) -> Result<&'v Value, InputError> {
    values
        .get(name)
        .ok_or_else(|| InputError::of(name, "is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn values(value: Value) -> Values {
        let Value::Object(members) = value else {
            panic!("not an object");
        };
        members.into_iter().collect()
    }

    #[test]
    fn a_whole_string_keeps_its_type_and_a_part_is_text() {
        let values = values(json!({"n": 3, "s": "x y", "b": true, "list": ["a", {"b": 1}]}));
        let template = json!({"a": ["${n}", "n=${n}/${s}/${b}", "$${n}", 7, null], "l": "${list}"});
        let filled = fill(&template, &values).unwrap();
        assert_eq!(
            filled,
            json!({"a": [3, "n=3/x y/true", "${n}", 7, null], "l": ["a", {"b": 1}]})
        );
        let error = fill(&json!("-${list}"), &values).unwrap_err();
        assert_eq!(error.field, "input.list");
        assert_eq!(
            fill(&json!("${gone}"), &values).unwrap_err().field,
            "input.gone"
        );
    }

    #[test]
    fn what_is_no_template_is_told_by_its_text() {
        for (text, word) in [
            ("${vm", "without its"),
            ("${VM}", "not a field"),
            ("${}", "not a field"),
            ("cost: 5$", "single `$`"),
            ("$vm", "single `$`"),
        ] {
            let problem = fields(&json!([{ "a": text }])).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
        }
        assert!(
            fields(&json!({"${vm}": 1}))
                .unwrap_err()
                .contains("member's name")
        );
        assert_eq!(
            fields(&json!(["${a}-${b}", {"c": "${a}"}])).unwrap(),
            ["a", "b", "a"]
        );
    }

    proptest! {
        #[test]
        fn a_value_goes_in_as_it_is_and_is_never_read_as_a_template(text in ".{0,40}") {
            let values = values(json!({ "v": text }));
            prop_assert_eq!(fill(&json!("${v}"), &values).unwrap(), json!(text));
            let (filled, _) = fill_text("<${v}>", &values).unwrap();
            prop_assert_eq!(filled, format!("<{text}>"));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}") {
            let values = Values::new();
            prop_assert_eq!(fields_of_text(&text).is_err(), pieces(&text).is_err());
            drop(fill(&json!(text), &values));
        }
    }
}
