//! The chart, rendered as Helm does it. Debian has no Helm, so the templates keep to what the crate `gtmpl`, Go's
//! templates in Rust, and these few of Helm's functions can do. Where Helm is installed, `programs` compares.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use gtmpl::{Context, Func, FuncError, Template, Value as Rendered};
use selvage::base::yaml;
use serde_json::{Value, json};

use crate::{path, read};

/// In the order in which objects need each other.
const TEMPLATES: [&str; 4] = [
    "namespace.yaml",
    "rbac.yaml",
    "config.yaml",
    "daemonset.yaml",
];

/// Helm's and Sprig's, with their order of arguments: a pipeline's value comes last.
const FUNCTIONS: [(&str, Func); 10] = [
    ("default", default),
    ("fail", fail),
    ("hasSuffix", has_suffix),
    ("indent", indent),
    ("int", int),
    ("nindent", nindent),
    ("quote", quote),
    ("ternary", ternary),
    ("toYaml", to_yaml),
    ("trim", trim),
];

/// What `helm template flannel chart --namespace kube-flannel` makes of the values, which count over the chart's own.
/// The error is what Helm would say.
pub(crate) fn render(values: &str) -> Result<String, String> {
    let mut all = yaml::parse(&read("chart/values.yaml"))?;
    merge(&mut all, &yaml::parse(values)?);
    let chart = yaml::parse(&read("chart/Chart.yaml"))?;
    let context = Context::from(rendered(&json!({
        "Values": all,
        "Release": {"Name": "flannel", "Namespace": "kube-flannel"},
        "Chart": {"AppVersion": chart["appVersion"]},
    })));
    let mut documents = Vec::new();
    for name in TEMPLATES {
        let mut template = Template::with_name(name);
        template.add_funcs(&FUNCTIONS);
        template
            .parse(read(&format!("chart/templates/{name}")))
            .map_err(|error| format!("{name}: {error}"))?;
        let text = template
            .render(&context)
            .map_err(|error| format!("{name}: {error}"))?;
        let text = text.trim();
        if !text.is_empty() {
            documents.push(format!("{text}\n"));
        }
    }
    Ok(documents.join("---\n"))
}

#[test]
fn every_template_is_rendered() {
    let entries = fs::read_dir(path("chart/templates")).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .collect::<Result<_, _>>()
        .expect("names");
    let mut rendered = TEMPLATES.map(str::to_owned).to_vec();
    names.sort();
    rendered.sort();
    assert_eq!(names, rendered);
}

/// Maps are merged, all else is replaced; null takes a key away.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (_, Value::Null) => {}
        (into, from) => *into = from.clone(),
    }
}

/// As the template engine has values. In its `Map` a key may be missing, as in Go's.
fn rendered(value: &Value) -> Rendered {
    match value {
        Value::Null => Rendered::NoValue,
        Value::Bool(is) => Rendered::Bool(*is),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Rendered::from(number),
            None => Rendered::from(number.as_f64()),
        },
        Value::String(text) => Rendered::String(text.clone()),
        Value::Array(elements) => Rendered::Array(elements.iter().map(rendered).collect()),
        Value::Object(entries) => {
            let entries = entries.iter();
            let entries: HashMap<_, _> = entries
                .map(|(key, value)| (key.clone(), rendered(value)))
                .collect();
            Rendered::Map(entries)
        }
    }
}

fn bad(function: &str) -> FuncError {
    FuncError::Generic(format!("{function}: unexpected arguments"))
}

fn text_of(value: &Rendered) -> String {
    match value {
        Rendered::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_empty(value: &Rendered) -> bool {
    match value {
        Rendered::NoValue | Rendered::Nil => true,
        Rendered::String(text) => text.is_empty(),
        _ => false,
    }
}

fn default(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [default, given] if is_empty(given) => Ok(default.clone()),
        [_, given] => Ok(given.clone()),
        _ => Err(bad("default")),
    }
}

fn fail(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    let words = arguments.iter().map(text_of);
    Err(FuncError::Generic(words.collect()))
}

fn has_suffix(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [suffix, text] => Ok(text_of(text).ends_with(&text_of(suffix)).into()),
        _ => Err(bad("hasSuffix")),
    }
}

fn indent(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    let [Rendered::Number(width), text] = arguments else {
        return Err(bad("indent"));
    };
    let width = width.as_u64().and_then(|width| usize::try_from(width).ok());
    let blanks = " ".repeat(width.ok_or_else(|| bad("indent"))?);
    let text = text_of(text);
    let lines: Vec<_> = text.lines().map(|line| format!("{blanks}{line}")).collect();
    Ok(lines.join("\n").into())
}

fn int(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [number] => {
            let number: Result<i64, _> = text_of(number).parse();
            // Sprig takes what is no number for 0.
            Ok(number.unwrap_or_default().into())
        }
        _ => Err(bad("int")),
    }
}

fn nindent(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    Ok(format!("\n{}", text_of(&indent(arguments)?)).into())
}

fn quote(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [text] => Ok(Value::from(text_of(text)).to_string().into()),
        _ => Err(bad("quote")),
    }
}

fn ternary(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [yes, no, Rendered::Bool(is)] => Ok(if *is { yes } else { no }.clone()),
        _ => Err(bad("ternary")),
    }
}

fn trim(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [text] => Ok(text_of(text).trim().into()),
        _ => Err(bad("trim")),
    }
}

fn to_yaml(arguments: &[Rendered]) -> Result<Rendered, FuncError> {
    match arguments {
        [value] => Ok(block(value).join("\n").into()),
        _ => Err(bad("toYaml")),
    }
}

/// The lines of a value in block style, with sorted keys.
fn block(value: &Rendered) -> Vec<String> {
    match value {
        Rendered::Map(entries) => {
            let entries: BTreeMap<_, _> = entries.iter().collect();
            let entries = entries.into_iter();
            entries.flat_map(|(key, value)| entry(key, value)).collect()
        }
        Rendered::Array(elements) => elements.iter().flat_map(element).collect(),
        other => vec![scalar(other)],
    }
}

fn entry(key: &str, value: &Rendered) -> Vec<String> {
    let lines = block(value);
    match value {
        Rendered::Map(_) | Rendered::Array(_) if !lines.is_empty() => {
            let width = if matches!(value, Rendered::Map(_)) {
                2
            } else {
                0
            };
            let lines = lines.into_iter().map(|line| format!("{:width$}{line}", ""));
            [format!("{key}:")].into_iter().chain(lines).collect()
        }
        Rendered::Map(_) => vec![format!("{key}: {{}}")],
        Rendered::Array(_) => vec![format!("{key}: []")],
        scalar => vec![format!("{key}: {}", block(scalar).concat())],
    }
}

fn element(value: &Rendered) -> Vec<String> {
    let lines = block(value).into_iter().enumerate();
    lines
        .map(|(at, line)| format!("{}{line}", if at == 0 { "- " } else { "  " }))
        .collect()
}

/// Plain where nothing else could be meant.
fn scalar(value: &Rendered) -> String {
    let Rendered::String(text) = value else {
        return value.to_string();
    };
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .chars()
            .all(|one| one.is_ascii_alphanumeric() || "-._/".contains(one))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    if is_plain
        || text.starts_with(|first: char| first.is_ascii_digit()) && text.ends_with(['m', 'i'])
    {
        text.clone()
    } else {
        Value::from(text.clone()).to_string()
    }
}
