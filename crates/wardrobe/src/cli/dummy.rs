//! Which model a command opens: one with weights of its own, or one whose weights are made up for a configuration.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use wardrobe::{DummyOptions, Error, Model, ModelOptions, StorageType};

use super::failure::{UsageError, with_hint};
use super::open::{self, Found};
use super::progress::OpenProgress;
use super::values::serde_as_text;

serde_as_text!(LoadFormat, DummyDtype);

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadFormat {
    /// From the model's files.
    #[default]
    Auto,
    /// They are made up.
    Dummy,
}

impl FromStr for LoadFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(LoadFormat::Auto),
            "dummy" => Ok(LoadFormat::Dummy),
            _ => Err(format!("unknown format {text:?}: auto or dummy")),
        }
    }
}

impl fmt::Display for LoadFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == LoadFormat::Dummy { "dummy" } else { "auto" })
    }
}

/// How made-up matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DummyDtype(pub StorageType);

const DTYPES: [(&str, StorageType); 8] = [
    ("f32", StorageType::F32),
    ("f16", StorageType::F16),
    ("bf16", StorageType::BF16),
    ("q8_0", StorageType::Q8_0),
    ("q4_0", StorageType::Q4_0),
    ("q4_1", StorageType::Q4_1),
    ("q4_k", StorageType::Q4_K),
    ("q6_k", StorageType::Q6_K),
];

impl FromStr for DummyDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = DTYPES.iter().find(|(name, _)| *name == text).map(|(_, storage)| DummyDtype(*storage));
        found.ok_or_else(|| {
            let names: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
            format!("unknown type {text:?}: {}", names.join(", "))
        })
    }
}

impl fmt::Display for DummyDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name().to_lowercase())
    }
}

/// Made-up weights in the place of a model's, for commands that measure.
#[derive(Debug, clap::Args)]
pub struct DummyArgs {
    /// Where weights come from: auto reads those of MODEL, dummy makes them up for the model that --config describes
    #[arg(
        long,
        value_name = "FORMAT",
        env = "WARDROBE_LOAD_FORMAT",
        hide_env = true,
        default_value = "auto"
    )]
    pub load_format: LoadFormat,
    /// With --load-format dummy: the config.json of the model, as Hugging Face has it; benches/configs has some
    #[arg(
        long,
        visible_alias = "config",
        value_name = "FILE",
        env = "WARDROBE_MODEL_CONFIG",
        hide_env = true
    )]
    pub model_config: Option<PathBuf>,
    /// With --load-format dummy: how matrices are stored: f32, f16, bf16, q8_0, q4_0, q4_1, q4_k or q6_k [default: as the
    /// configuration says, else bf16]
    #[arg(long, value_name = "TYPE", env = "WARDROBE_DUMMY_DTYPE", hide_env = true)]
    pub dummy_dtype: Option<DummyDtype>,
    /// With --load-format dummy: what the random weights follow from [default: 0]
    #[arg(long, value_name = "N", env = "WARDROBE_DUMMY_SEED", hide_env = true)]
    pub dummy_seed: Option<u64>,
}

impl DummyArgs {
    /// Which model these and MODEL ask for.
    pub fn choose(&self, model: Option<&str>) -> anyhow::Result<Option<Chosen>> {
        let config = self.model_config.as_deref();
        Asked { model, format: self.load_format, config, dtype: self.dummy_dtype, seed: self.dummy_seed }
            .choose()
    }
}

/// What a command line says of the model.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// MODEL.
    pub model: Option<&'a str>,
    /// `--load-format`.
    pub format: LoadFormat,
    /// `--model-config`.
    pub config: Option<&'a Path>,
    /// `--dummy-dtype`.
    pub dtype: Option<DummyDtype>,
    /// `--dummy-seed`.
    pub seed: Option<u64>,
}

/// The model that a command opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// One that has files, as a person wrote it.
    Files(String),
    /// One whose weights are made up.
    Dummy {
        /// Its `config.json`.
        config: PathBuf,
        /// What they are made up of.
        options: DummyOptions,
    },
}

impl Asked<'_> {
    /// Which model that is, `None` if none is named; refuses what does not go together.
    pub fn choose(self) -> anyhow::Result<Option<Chosen>> {
        if self.format == LoadFormat::Auto {
            let given = [
                ("--model-config", self.config.is_some()),
                ("--dummy-dtype", self.dtype.is_some()),
                ("--dummy-seed", self.seed.is_some()),
            ];
            if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
                return Err(UsageError(format!("{flag} needs --load-format dummy")).into());
            }
            return Ok(self.model.map(|model| Chosen::Files(model.to_owned())));
        }
        if let Some(model) = self.model {
            let error = UsageError(format!("--load-format dummy takes no MODEL, and {model} is given"));
            return Err(with_hint(
                error,
                "--model-config FILE describes the model whose weights are made up",
            ));
        }
        let Some(config) = self.config else {
            let error = UsageError("--load-format dummy needs --model-config FILE".to_owned());
            return Err(with_hint(error, "give a model's config.json; benches/configs has some"));
        };
        let options =
            DummyOptions { storage: self.dtype.map(|dtype| dtype.0), seed: self.seed.unwrap_or_default() };
        Ok(Some(Chosen::Dummy { config: config.to_owned(), options }))
    }
}

impl Chosen {
    /// A short name.
    pub fn name(&self) -> anyhow::Result<String> {
        match self {
            Chosen::Files(model) => open::name(model),
            Chosen::Dummy { config, .. } => Ok(Model::dummy_name(config)),
        }
    }

    /// What its weights are made up of, if they are.
    pub fn dummy_options(&self) -> Option<DummyOptions> {
        match self {
            Chosen::Files(_) => None,
            Chosen::Dummy { options, .. } => Some(*options),
        }
    }

    /// Finds it, and pulls it if it is not here.
    pub fn find(&self) -> anyhow::Result<Found> {
        match self {
            Chosen::Files(model) => open::find(model),
            Chosen::Dummy { config, .. } => Ok(Found { path: config.clone(), name: self.name()? }),
        }
    }

    /// Opens it once it was found, and shows on a terminal how far it is.
    pub fn open(&self, found: &Found, options: &ModelOptions) -> anyhow::Result<Model> {
        let Chosen::Dummy { config, options: dummy } = self else { return open::open(found, options) };
        let progress = OpenProgress::new(&found.name);
        Model::dummy_with_progress(config, dummy, options, &|made, total| progress.at(made, total))
            .map_err(too_large)
            .with_context(|| format!("cannot make up the model of {}", config.display()))
    }
}

/// What helps where weights do not fit.
pub fn too_large(error: Error) -> anyhow::Error {
    match error {
        Error::WeightMemory { .. } => with_hint(error, "a smaller --dummy-dtype, such as q4_0, takes less"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Asked<'static> =
        Asked { model: None, format: LoadFormat::Auto, config: None, dtype: None, seed: None };

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, storage) in DTYPES {
            let dtype: DummyDtype = name.parse().unwrap();
            assert_eq!((dtype.0, dtype.to_string().as_str()), (storage, name));
            assert!(storage.is_device_native());
        }
        assert!("q5_0".parse::<DummyDtype>().unwrap_err().contains("q6_k"));
        for name in ["auto", "dummy"] {
            assert_eq!(name.parse::<LoadFormat>().unwrap().to_string(), name);
        }
        assert!("safetensors".parse::<LoadFormat>().is_err());
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let dummy = Asked { format: LoadFormat::Dummy, ..NOTHING };
        let config = Some(Path::new("c.json"));
        for (asked, named) in [
            (Asked { config, model: Some("m"), ..NOTHING }, "--model-config needs"),
            (Asked { dtype: Some(DummyDtype(StorageType::F32)), ..NOTHING }, "--dummy-dtype needs"),
            (Asked { seed: Some(0), ..NOTHING }, "--dummy-seed needs"),
            (Asked { model: Some("m"), config, ..dummy }, "takes no MODEL, and m is given"),
            (dummy, "needs --model-config"),
        ] {
            let said = asked.choose().unwrap_err().to_string();
            assert!(said.contains(named), "{asked:?}: {said}");
        }
        assert_eq!(NOTHING.choose().unwrap(), None);
        let files = Asked { model: Some("m"), ..NOTHING }.choose().unwrap();
        assert_eq!(files, Some(Chosen::Files("m".to_owned())));
        let chosen = Asked { config, seed: Some(3), ..dummy }.choose().unwrap().unwrap();
        assert_eq!(chosen.name().unwrap(), "c");
        let options = DummyOptions { storage: None, seed: 3 };
        assert_eq!(chosen, Chosen::Dummy { config: "c.json".into(), options });
    }
}
