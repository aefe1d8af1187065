//! Files that people write: definitions and the configuration. The only home of YAML.

pub mod definitions;
mod parse;
mod parse_feature;
pub mod reader;
pub mod settings;
pub mod yaml;

use std::path::{Path, PathBuf};

pub use definitions::Definitions;
pub use parse::default_max_bytes;
use reader::Mistakes;
use yaml::Mistake;

/// Definition files, read together.
#[derive(Debug)]
pub struct DefinitionFiles {
    /// The files, in the order in which places count them.
    pub paths: Vec<PathBuf>,
    /// What they say.
    pub definitions: Definitions,
    /// What is wrong with them so far.
    pub mistakes: Mistakes,
}

impl DefinitionFiles {
    /// Reads and merges the files at `paths`. Mistakes are collected, not returned.
    pub fn read(paths: &[PathBuf]) -> Self {
        let mut definitions = Definitions::default();
        let mut mistakes = Mistakes::default();
        for (file, path) in paths.iter().enumerate() {
            let place = yaml::Place { file, line: 1, column: 1 };
            match std::fs::read_to_string(path) {
                Ok(text) => Self::add(&text, file, &mut definitions, &mut mistakes),
                Err(error) => {
                    mistakes.push(place, format!("cannot read the file: {error}"));
                    mistakes.note_unreadable_file();
                }
            }
        }
        Self { paths: paths.to_vec(), definitions, mistakes }
    }

    /// Reads one text, as if it were a file.
    pub fn of_text(text: &str) -> Self {
        let mut definitions = Definitions::default();
        let mut mistakes = Mistakes::default();
        Self::add(text, 0, &mut definitions, &mut mistakes);
        Self { paths: vec![PathBuf::from("definitions.yaml")], definitions, mistakes }
    }

    fn add(text: &str, file: usize, definitions: &mut Definitions, mistakes: &mut Mistakes) {
        match yaml::parse(text.trim_start_matches('\u{feff}'), file) {
            Ok((root, found)) => {
                mistakes.extend(found);
                parse::definitions(&root, definitions, mistakes);
            }
            Err(found) => {
                mistakes.extend(vec![found]);
                mistakes.note_unreadable_file();
            }
        }
    }
}

/// `FILE:LINE:COLUMN: error: …`
pub fn show_mistake(mistake: &Mistake, paths: &[PathBuf]) -> String {
    let file = paths.get(mistake.place.file).map_or(Path::new("?"), PathBuf::as_path);
    let yaml::Place { line, column, .. } = mistake.place;
    format!("{}:{line}:{column}: error: {}", file.display(), mistake.message)
}
