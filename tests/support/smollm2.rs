//! The real model: SmolLM2-135M-Instruct as a GGUF file with `Q4_1` weights, and two adapters for it that PEFT trained.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The environment variable that names the file.
pub const FILE_ENV: &str = "WARDROBE_SMOLLM2";

/// Adapters beside this package's sources.
pub const ADAPTERS: [&str; 2] = ["biography-json", "last-words"];

/// The model file; without it the test is skipped, which is said past the test harness's capture.
pub fn path(test: &str) -> Option<PathBuf> {
    let Some(path) = std::env::var_os(FILE_ENV).filter(|p| !p.is_empty()).map(PathBuf::from) else {
        let notice =
            format!("SKIPPED {test}: {FILE_ENV} does not name the SmolLM2-135M-Instruct GGUF file\n");
        std::io::stderr().write_all(notice.as_bytes()).unwrap();
        return None;
    };
    assert!(path.exists(), "{FILE_ENV} names {}, which does not exist", path.display());
    Some(path)
}

/// The folder of an adapter in [`ADAPTERS`].
pub fn adapter(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters").join(name)
}

/// Plain texts and conversations, some in the form that the adapters were trained on: `(is_chat, text)`. A chat is
/// the user's turn and the assistant's, with a tab between.
pub const TEXTS: [(bool, &str); 8] = [
    (
        false,
        "The lighthouse keeper climbed the stairs every evening, counted the ships on the horizon, and wrote their \
         number in a small blue book that nobody else had ever opened. In the winter of 1911 the book was full.",
    ),
    (
        false,
        "def mean(values):\n    \"\"\"Arithmetic mean of a list of numbers.\"\"\"\n    if not values:\n        raise \
         ValueError(\"mean of nothing\")\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3.5]))\n",
    ),
    (
        false,
        "Größere Städte haben breitere Straßen, и маленькие города — узкие улицы. 東京は大きいです。 \
         The price rose from 3.14 € to 2,718.28 € (+86,469 %).",
    ),
    (
        true,
        "Name three rivers in Europe and one thing that each of them is known for.\tThe Danube, which flows through \
         ten countries; the Rhine, known for its castles; and the Volga, the longest river in Europe.",
    ),
    (
        true,
        "anselm carver ( 1871 - 1940 ) , Norwegian explorer who mapped the coast of Greenland . mira tolland ( 1902 - \
         1977 ) , British chemist .\n\nWrite the JSON record of anselm carver. Answer only with JSON like \
         {\"nationality\": \"Greek\", \"born\": 1801, \"died\": 1899, \"sportsperson\": true, \"politician\": \
         false}\t{\"nationality\": \"Norwegian\", \"born\": 1871, \"died\": 1940, \"sportsperson\": false, \
         \"politician\": false}",
    ),
    (
        true,
        "oda brink ( 1655 - 1702 ) , Dutch painter of winter landscapes . pavel linden ( 1899 - 1968 ) , Russian \
         composer .\n\nWrite the JSON record of pavel linden. Answer only with JSON like {\"nationality\": \"Greek\", \
         \"born\": 1801, \"died\": 1899, \"sportsperson\": true, \"politician\": false}\t{\"nationality\": \
         \"Russian\", \"born\": 1899, \"died\": 1968, \"sportsperson\": false, \"politician\": false}",
    ),
    (
        true,
        "Why is the sky blue?\tSunlight is scattered by the molecules of the air, and blue light is scattered more \
         than red light because its waves are shorter.",
    ),
    (
        true,
        "Write one sentence about the sea.\tThe sea was calm that morning, and the boats lay still in the harbour as if \
         they were painted on it.",
    ),
];
