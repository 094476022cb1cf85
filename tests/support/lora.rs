//! Random adapters of every kind that is served.

use wardrobe::ModelConfig;
use wardrobe_formats::peft::{AdapterRope, LoraModule, ModuleSelector, PeftContents, PeftLimits};
use wardrobe_formats::{AdapterConfig, AdapterTensor, PeftAdapter, StorageType, convert};

use super::random::Rng;

/// The linear layers of a block, in PEFT's short names.
pub const ALL_MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Those of a block with experts.
pub const MIXTRAL_MODULES: [&str; 8] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"];

/// What a random adapter is like.
#[derive(Debug, Clone)]
pub struct RandomLora {
    pub rank: usize,
    pub alpha: f64,
    /// Short names of modules.
    pub targets: Vec<&'static str>,
    /// Standard deviation of the update `scale * B A x` for an `x` of unit variance.
    pub strength: f32,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
    pub storage: StorageType,
    /// Rotary positions of its own.
    pub rope: Option<AdapterRope>,
    pub seed: u64,
}

impl Default for RandomLora {
    fn default() -> Self {
        RandomLora {
            rank: 4,
            alpha: 8.0,
            targets: ALL_MODULES.to_vec(),
            strength: 0.5,
            use_rslora: false,
            use_dora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            storage: StorageType::F32,
            rope: None,
            seed: 1,
        }
    }
}

/// `(out, in)` of a module of one block.
pub fn module_shape(c: &ModelConfig, short_name: &str) -> (usize, usize) {
    match short_name {
        "q_proj" => (c.q_size(), c.hidden_size),
        "k_proj" | "v_proj" => (c.kv_size(), c.hidden_size),
        "o_proj" => (c.hidden_size, c.q_size()),
        "gate_proj" | "up_proj" => (c.intermediate_size, c.hidden_size),
        "down_proj" | "w2" => (c.hidden_size, c.intermediate_size),
        "w1" | "w3" => (c.intermediate_size, c.hidden_size),
        "gate" => (c.experts.unwrap().num_experts, c.hidden_size),
        other => panic!("no module {other}"),
    }
}

/// The paths of a block's modules of this name: one, or each expert's.
pub fn module_paths(c: &ModelConfig, layer: usize, short_name: &str) -> Vec<String> {
    let of_block = |part: &str| format!("model.layers.{layer}.block_sparse_moe.{part}");
    match short_name {
        "gate" => vec![of_block("gate")],
        "w1" | "w2" | "w3" => {
            let experts = 0..c.experts.unwrap().num_experts;
            experts.map(|e| of_block(&format!("experts.{e}.{short_name}"))).collect()
        }
        _ => vec![module_path(layer, short_name)],
    }
}

/// The path of a module in the model.
pub fn module_path(layer: usize, short_name: &str) -> String {
    let parent =
        if ["gate_proj", "up_proj", "down_proj"].contains(&short_name) { "mlp" } else { "self_attn" };
    format!("model.layers.{layer}.{parent}.{short_name}")
}

/// A tensor in `storage`, rounded from f32.
pub fn tensor(storage: StorageType, shape: Vec<usize>, values: &[f32]) -> AdapterTensor {
    let bytes = convert::from_f32(storage, values, 1).unwrap();
    AdapterTensor::new("random".as_ref(), "a factor", storage, shape, bytes).unwrap()
}

impl RandomLora {
    /// Its `adapter_config.json`.
    pub fn config(&self) -> AdapterConfig {
        let targets = self.targets.iter().map(|t| (*t).to_owned()).collect();
        AdapterConfig {
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            target_modules: ModuleSelector::List(targets),
            ..AdapterConfig::new(self.rank, self.alpha, Vec::new())
        }
    }

    /// Its factors for a model of this shape.
    pub fn modules(&self, model: &ModelConfig) -> Vec<LoraModule> {
        let mut rng = Rng::new(self.seed);
        let mut modules = Vec::new();
        for layer in 0..model.num_layers {
            let paths = |name| module_paths(model, layer, name).into_iter().map(move |path| (name, path));
            for (short_name, module_path) in self.targets.iter().copied().flat_map(paths) {
                let (out, input) = module_shape(model, short_name);
                let of = |key: &str| module_path.ends_with(key);
                let rank = self.rank_pattern.iter().find(|(k, _)| of(k)).map_or(self.rank, |p| p.1);
                let alpha = self.alpha_pattern.iter().find(|(k, _)| of(k)).map_or(self.alpha, |p| p.1);
                let scale = if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
                let a = rng.normals(rank * input, 1.0 / (input as f32).sqrt());
                let b = rng.normals(out * rank, self.strength / (scale as f32 * (rank as f32).sqrt()));
                let magnitude = self.use_dora.then(|| {
                    let values: Vec<f32> = rng.normals(out, 0.3).iter().map(|v| 1.2 + v.abs()).collect();
                    tensor(StorageType::F32, vec![out], &values)
                });
                modules.push(LoraModule {
                    module_path,
                    a: tensor(self.storage, vec![rank, input], &a),
                    b: tensor(self.storage, vec![out, rank], &b),
                    magnitude,
                    rank,
                    scale,
                });
            }
        }
        modules
    }

    /// The adapter, for a model of this shape.
    pub fn build(&self, model: &ModelConfig) -> PeftAdapter {
        let (config, modules) = (self.config(), self.modules(model));
        let contents = PeftContents {
            config: &config,
            modules: &modules,
            embeddings: &[],
            saved: &[],
            rope: self.rope.as_ref(),
            parity: None,
            extra_files: &[],
        };
        PeftAdapter::from_contents("random", &contents, &PeftLimits::default()).unwrap()
    }

    /// Writes its folder `dir`.
    pub fn write(&self, model: &ModelConfig, dir: &std::path::Path) {
        let (config, modules) = (self.config(), self.modules(model));
        let rope = self.rope.as_ref();
        let contents = PeftContents {
            config: &config,
            modules: &modules,
            embeddings: &[],
            saved: &[],
            rope,
            parity: None,
            extra_files: &[],
        };
        wardrobe_formats::peft::write_peft(dir, &contents, true).unwrap();
    }
}

/// Writes an adapter folder.
pub fn write(config: &AdapterConfig, modules: &[LoraModule], dir: &std::path::Path) {
    let contents = PeftContents {
        config,
        modules,
        embeddings: &[],
        saved: &[],
        rope: None,
        parity: None,
        extra_files: &[],
    };
    wardrobe_formats::peft::write_peft(dir, &contents, true).unwrap();
}
