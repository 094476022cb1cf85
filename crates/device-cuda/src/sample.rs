//! Drawing tokens and reporting log-probabilities on the card: what is asked goes there in one copy, and what was found comes back in
//! another.

use wardrobe_device::{DeviceError, LogprobRow, Result, SampleRow, Sampled, Tensor, TokenLogprobs};

use crate::driver::DevicePtr;
use crate::kernels::{Args, EditArg, ReportArgs, ReportParams, SampleArgs, SampleParams, blocks};
use crate::ops::{CudaOps, Room, addr, int};

/// Threads of a row's block.
const THREADS: u32 = 1024;
/// Largest vocabulary of the kernels.
const MAX_VOCAB: usize = 262_144;
/// Most of the most probable tokens that are reported.
const MAX_TOP: u32 = 128;
/// A row without a mask.
const NO_MASK: u32 = u32::MAX;
/// Parts of the room begin at multiples of this.
const ALIGN: usize = 256;

/// A place in the room, relative to its start.
#[derive(Debug, Clone, Copy)]
struct Place(usize);

/// What goes to the card, part after part.
#[derive(Debug, Default)]
struct Upload {
    bytes: Vec<u8>,
}

impl Upload {
    fn align(&mut self) -> Place {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        Place(self.bytes.len())
    }

    fn structs<A: Args>(&mut self, values: &[A]) -> Place {
        let place = self.align();
        // SAFETY: structs without padding are their bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.bytes.extend_from_slice(bytes);
        place
    }

    fn words(&mut self, words: &[u32]) -> Place {
        let place = self.align();
        self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        place
    }
}

/// Results of a report, as the card leaves them.
#[derive(Debug, Clone, Copy)]
struct ReportPlaces {
    results: Place,
    top: Place,
    asked: Place,
}

/// What is reported of a row.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted<'a> {
    top: u32,
    asked: &'a [u32],
    mask_start: Option<u32>,
    is_wanted: bool,
}

/// The parts of a report that are read by the card.
struct Questions {
    params: Vec<ReportParams>,
    asked: Vec<u32>,
    max_top: u32,
}

impl Questions {
    fn of<'a>(rows: impl Iterator<Item = Wanted<'a>>) -> Result<Self> {
        let mut questions = Questions { params: Vec::new(), asked: Vec::new(), max_top: 0 };
        for wanted in rows {
            if wanted.top > MAX_TOP {
                let reason = format!("the {} most probable tokens, and {MAX_TOP} are the most", wanted.top);
                return Err(DeviceError::Invalid { op: "logprobs", reason });
            }
            questions.max_top = questions.max_top.max(wanted.top);
            questions.params.push(ReportParams {
                is_wanted: u32::from(wanted.is_wanted),
                top: wanted.top,
                asked_start: questions.asked.len() as u32,
                asked_len: wanted.asked.len() as u32,
                mask_start: wanted.mask_start.unwrap_or(NO_MASK),
            });
            questions.asked.extend_from_slice(wanted.asked);
        }
        Ok(questions)
    }
}

fn check(op: &'static str, vocab: usize) -> Result<()> {
    if vocab > MAX_VOCAB {
        let reason = format!("a vocabulary of {vocab}, and {MAX_VOCAB} is the largest");
        return Err(DeviceError::Invalid { op, reason });
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(word(bytes, at))
}

/// Reads a row's report.
fn logprobs(bytes: &[u8], places: ReportPlaces, row: usize, questions: &Questions) -> TokenLogprobs {
    let result = places.results.0 + 12 * row;
    let top = places.top.0 + 8 * questions.max_top as usize * row;
    let num_top = word(bytes, result + 8) as usize;
    let asked = questions
        .params
        .get(row)
        .map_or(0..0, |p| p.asked_start as usize..(p.asked_start + p.asked_len) as usize);
    TokenLogprobs {
        logprob: float(bytes, result),
        rank: word(bytes, result + 4),
        top: (0..num_top).map(|i| (word(bytes, top + 8 * i), float(bytes, top + 8 * i + 4))).collect(),
        asked: asked
            .filter_map(|i| Some((*questions.asked.get(i)?, float(bytes, places.asked.0 + 4 * i))))
            .collect(),
    }
}

impl CudaOps {
    /// See [`wardrobe_device::Ops::sample`].
    pub(crate) fn draw(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>> {
        let vocab = logits.shape().row_len();
        check("sample", vocab)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (mut params, mut edits, mut masks, mut mask_starts) = (vec![], vec![], vec![], vec![]);
        let mut row_edits = Vec::new();
        for row in rows {
            row.edits(vocab, &mut row_edits);
            let mask_start = row.allowed.as_ref().map(|_| masks.len() as u32);
            masks.extend_from_slice(row.allowed.as_deref().unwrap_or(&[]));
            params.push(SampleParams {
                seed: row.seed,
                position: row.position,
                temperature: row.temperature,
                top_p: row.top_p,
                min_p: row.min_p,
                top_k: row.top_k,
                choice: row.choice,
                edits_start: edits.len() as u32,
                edits_len: row_edits.len() as u32,
                mask_start: mask_start.unwrap_or(NO_MASK),
            });
            mask_starts.push(mask_start);
            edits.extend(row_edits.iter().map(|edit| EditArg {
                token: edit.token,
                bias: edit.bias,
                repetition: edit.repetition,
                subtract: edit.subtract,
                is_banned: u32::from(edit.banned),
            }));
        }
        let questions = Questions::of(rows.iter().zip(mask_starts).map(|(row, mask_start)| Wanted {
            top: row.top_logprobs.unwrap_or(0),
            asked: &row.logprob_tokens,
            mask_start,
            is_wanted: row.top_logprobs.is_some() || !row.logprob_tokens.is_empty(),
        }))?;
        let has_reports = questions.params.iter().any(|params| params.is_wanted != 0);
        let mut upload = Upload::default();
        let (params, has_edits) = (upload.structs(&params), !edits.is_empty());
        let (edits, masks) = (upload.structs(&edits), upload.words(&masks));
        let report_params = upload.structs(&questions.params);
        let asked = upload.words(&questions.asked);
        let results = upload.align();
        let (places, answers_end) = answers(results.0 + 8 * rows.len(), rows.len(), &questions);
        let edited = answers_end.next_multiple_of(ALIGN);
        let edited_stride = vocab.next_multiple_of(4);
        let edited_bytes = if has_edits { 4 * rows.len() * edited_stride } else { 0 };
        let room = self.room(Room::Sample, edited + edited_bytes)?;
        let at = |place: Place| room.offset(place.0);
        let args = SampleArgs {
            logits: addr("sample", "logits", logits)?,
            params: at(params),
            edits: at(edits),
            masks: at(masks),
            edited: room.offset(edited),
            results: at(results),
            vocab: int(vocab),
            edited_stride: int(edited_stride),
        };
        let kernel = self.kernels().get::<SampleArgs>("sample", "sample", 0)?;
        // SAFETY: the room holds all parts; operands are as `Ops` promises; the kernel gets what its comments ask for.
        unsafe {
            self.driver().write(self.stream(), room, &upload.bytes)?;
            kernel.launch(self.driver().as_ref(), self.stream(), blocks(rows.len(), THREADS), &args)?;
        }
        if has_reports {
            self.queue_report(
                &ReportArgs {
                    logits: args.logits,
                    tokens: at(results),
                    params: at(report_params),
                    masks: at(masks),
                    asked: at(asked),
                    results: at(places.results),
                    top: at(places.top),
                    asked_logprobs: at(places.asked),
                    vocab: int(vocab),
                    token_stride: 2,
                    max_top: questions.max_top as i32,
                    padding: 0,
                },
                rows.len(),
            )?;
        }
        let end = if has_reports { answers_end } else { results.0 + 8 * rows.len() };
        let bytes = self.answers(room, results, end)?;
        let relative = places.relative_to(results);
        let sampled = rows.iter().enumerate().map(|(i, row)| Sampled {
            token: word(&bytes, 8 * i),
            has_candidate: word(&bytes, 8 * i + 4) != 0,
            logprobs: (row.top_logprobs.is_some() || !row.logprob_tokens.is_empty())
                .then(|| logprobs(&bytes, relative, i, &questions)),
        });
        Ok(sampled.collect())
    }

    /// See [`wardrobe_device::Ops::logprobs`].
    pub(crate) fn report(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>> {
        let vocab = logits.shape().row_len();
        check("logprobs", vocab)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let questions = Questions::of(rows.iter().map(|row| Wanted {
            top: row.top,
            is_wanted: true,
            ..Wanted::default()
        }))?;
        let mut upload = Upload::default();
        let params = upload.structs(&questions.params);
        let tokens: Vec<u32> = rows.iter().map(|row| row.target).collect();
        let tokens = upload.words(&tokens);
        let start = upload.align();
        let (places, end) = answers(start.0, rows.len(), &questions);
        let room = self.room(Room::Sample, end)?;
        let at = |place: Place| room.offset(place.0);
        // SAFETY: the room holds all parts.
        unsafe { self.driver().write(self.stream(), room, &upload.bytes)? };
        self.queue_report(
            &ReportArgs {
                logits: addr("logprobs", "logits", logits)?,
                tokens: at(tokens),
                params: at(params),
                masks: room,
                asked: room,
                results: at(places.results),
                top: at(places.top),
                asked_logprobs: at(places.asked),
                vocab: int(vocab),
                token_stride: 1,
                max_top: questions.max_top as i32,
                padding: 0,
            },
            rows.len(),
        )?;
        let bytes = self.answers(room, start, end)?;
        let relative = places.relative_to(start);
        Ok((0..rows.len()).map(|row| logprobs(&bytes, relative, row, &questions)).collect())
    }

    fn queue_report(&mut self, args: &ReportArgs, rows: usize) -> Result<()> {
        let kernel = self.kernels().get::<ReportArgs>("sample_report", "token_logprobs", 0)?;
        // SAFETY: as in `draw`.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), blocks(rows, THREADS), args) }
    }

    fn answers(&mut self, room: DevicePtr, from: Place, end: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; end - from.0];
        // SAFETY: the room holds all parts.
        unsafe { self.driver().read(self.stream(), room.offset(from.0), &mut bytes)? };
        Ok(bytes)
    }
}

/// Where a report's answers are, from `start` on, and their end.
fn answers(start: usize, rows: usize, questions: &Questions) -> (ReportPlaces, usize) {
    let results = start.next_multiple_of(16);
    let top = (results + 12 * rows).next_multiple_of(16);
    let asked = (top + 8 * rows * questions.max_top as usize).next_multiple_of(16);
    let places = ReportPlaces { results: Place(results), top: Place(top), asked: Place(asked) };
    (places, asked + 4 * questions.asked.len())
}

impl ReportPlaces {
    /// The same, counted from another place.
    fn relative_to(self, from: Place) -> Self {
        let relative = |place: Place| Place(place.0 - from.0);
        ReportPlaces { results: relative(self.results), top: relative(self.top), asked: relative(self.asked) }
    }
}
