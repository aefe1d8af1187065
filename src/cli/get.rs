//! `thalweg get`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value as Json, json};
use thalweg::app::load_definitions;
use thalweg::config::settings::Settings;
use thalweg::model::ScalarType;
use thalweg::telemetry::print_line;
use thalweg::topology::Topology;

use super::{Failure, Outcome, load_settings, server_url};

/// Arguments of `get`.
#[derive(Args)]
pub struct GetArguments {
    /// Features: `group:feature`, or several of a group as `group:f1,f2`
    #[arg(required = true)]
    features: Vec<String>,
    /// A join key and its value: `name=value`
    #[arg(long = "entity", required = true)]
    entities: Vec<String>,
    /// Read time, RFC 3339; default: what the group says
    #[arg(long)]
    as_of: Option<String>,
    /// A value for on-demand features: `name=value`
    #[arg(long = "request")]
    request: Vec<String>,
    /// Address of the engine
    #[arg(long)]
    server: Option<String>,
    /// Print the engine's answer as it is
    #[arg(long)]
    json: bool,
    /// Configuration file
    #[arg(long, default_value = "thalweg.yaml")]
    config: PathBuf,
}

/// `text` as JSON of `scalar`; without one, as what it looks like.
fn typed(text: &str, scalar: Option<ScalarType>) -> Json {
    match scalar {
        Some(ScalarType::String | ScalarType::Timestamp) => Json::from(text),
        _ => match serde_json::from_str(text) {
            Ok(json @ (Json::Number(_) | Json::Bool(_))) => json,
            _ => Json::from(text),
        },
    }
}

fn pairs(
    list: &[String],
    what: &str,
    scalar_of: impl Fn(&str) -> Option<ScalarType>,
) -> Result<Map<String, Json>, Failure> {
    list.iter()
        .map(|pair| {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                Failure::Input(format!("error: --{what} {pair} is not of the form name=value"))
            })?;
            Ok((name.to_owned(), json!([typed(value, scalar_of(name))])))
        })
        .collect()
}

/// Looks features up and prints a table.
pub fn get(arguments: &GetArguments) -> Outcome {
    let settings: Option<Settings> = load_settings(&arguments.config, &[]).ok();
    let topology: Option<Topology> = settings.as_ref().and_then(|s| load_definitions(&s.definitions).ok());
    let key_type = |name: &str| {
        let entities = topology.as_ref()?.entities.iter();
        entities.flat_map(|e| &e.keys).find(|(key, _)| key == name).map(|(_, t)| *t)
    };
    let request_type =
        |name: &str| topology.as_ref()?.request.iter().find(|(n, _)| n == name).map(|(_, t)| *t);
    let features: Vec<String> = arguments
        .features
        .iter()
        .flat_map(|text| match text.split_once(':') {
            Some((group, names)) => names
                .split(',')
                .map(|n| if n.contains(':') { n.to_owned() } else { format!("{group}:{n}") })
                .collect(),
            None => vec![text.clone()],
        })
        .collect();
    let mut body = json!({
        "features": features,
        "entities": pairs(&arguments.entities, "entity", key_type)?,
        "request": pairs(&arguments.request, "request", request_type)?,
        "full_feature_names": true,
    });
    if let Some(as_of) = &arguments.as_of {
        body["as_of"] = Json::from(as_of.as_str());
    }
    let url = format!("{}/v1/features/online", server_url(arguments.server.as_ref(), settings.as_ref()));
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let failed = |e: ureq::Error| Failure::Engine(format!("error: {url}: {e} (is `thalweg run` up?)"));
    let mut response = agent.post(&url).send_json(&body).map_err(failed)?;
    let status = response.status().as_u16();
    let answer: Json = response.body_mut().read_json().map_err(failed)?;
    if status != 200 {
        let part = |key: &str| answer["error"][key].as_str().unwrap_or("").to_owned();
        let hint = if part("hint").is_empty() { String::new() } else { format!(" ({})", part("hint")) };
        let text = format!("error: {}{hint}", part("message"));
        return Err(if status < 500 { Failure::Input(text) } else { Failure::Engine(text) });
    }
    if arguments.json {
        print_line(&answer.to_string());
    } else {
        print_table(&answer);
    }
    Ok(())
}

fn print_table(answer: &Json) {
    let empty = Vec::new();
    let names = answer["metadata"]["feature_names"].as_array().unwrap_or(&empty);
    let results = answer["results"].as_array().unwrap_or(&empty);
    let cells: Vec<[String; 4]> = names
        .iter()
        .zip(results)
        .map(|(name, column)| {
            let timestamp = column["event_timestamps"][0].as_str().unwrap_or("");
            let timestamp = if timestamp == "1970-01-01T00:00:00Z" { "" } else { timestamp };
            [
                name.as_str().unwrap_or("").to_owned(),
                column["values"][0].to_string(),
                column["statuses"][0].as_str().unwrap_or("").to_owned(),
                timestamp.to_owned(),
            ]
        })
        .collect();
    let width = |i: usize| cells.iter().map(|c| c[i].chars().count()).max().unwrap_or(0).min(60);
    let (a, b, c) = (width(0), width(1), width(2));
    for [name, value, status, timestamp] in &cells {
        print_line(format!("{name:a$}  {value:b$}  {status:c$}  {timestamp}").trim_end());
    }
}
