//! From kernel files to machine code: a fatbin that was made when the program was built, or what NVRTC makes of the embedded source,
//! which is kept on the disk.
//!
//! What is kept is named by a digest of source, headers, options, architecture and compiler, and begins with a digest of its own bytes:
//! a file that was cut short or changed is made anew.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::sys::{self, nvrtcResult};
use sha2::{Digest, Sha256};
use wardrobe_device::{DeviceError, Result};

use crate::libraries;
use crate::source::{FATBINS, HEADERS, Source};

/// Options beside the architecture.
const OPTIONS: [&str; 1] = ["--std=c++17"];

/// NVRTC, which was found when the program ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// Major and minor.
    pub version: (u32, u32),
    /// Compute capabilities that it knows, such as 90.
    pub architectures: Vec<u32>,
}

fn check(call: &'static str, result: nvrtcResult) -> Result<()> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(DeviceError::Driver { call, reason: format!("{other:?}") }),
    }
}

macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        check(stringify!($function), sys::$function($($argument),*))
    };
}

impl Compiler {
    /// `None` if it is not installed.
    ///
    /// # Errors
    /// What the library says of itself.
    pub fn find() -> Result<Option<Self>> {
        libraries::preload();
        // SAFETY: looks for a library by its usual names.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each call writes what it is given room for.
        let architectures = unsafe {
            call!(nvrtcVersion(&raw mut major, &raw mut minor))?;
            call!(nvrtcGetNumSupportedArchs(&raw mut count))?;
            let mut architectures = vec![0; count.max(0) as usize];
            call!(nvrtcGetSupportedArchs(architectures.as_mut_ptr()))?;
            architectures.into_iter().filter_map(|a: c_int| u32::try_from(a).ok()).collect()
        };
        Ok(Some(Compiler { version: (major as u32, minor as u32), architectures }))
    }

    /// How to call the architecture of a card with this capability: itself, or the nearest older one of the same generation, whose
    /// machine code it runs.
    pub fn architecture(&self, capability: (u32, u32)) -> Option<String> {
        let wanted = 10 * capability.0 + capability.1;
        let nearest = |a: &&u32| **a <= wanted && **a / 10 == capability.0;
        let nearest = self.architectures.iter().filter(nearest).max()?;
        // Hopper's own instructions have a name of their own.
        Some(if *nearest == 90 { "90a".to_owned() } else { nearest.to_string() })
    }

    /// Machine code of a file.
    ///
    /// # Errors
    /// The compiler's log.
    pub fn compile(&self, source: &Source, architecture: &str) -> Result<Vec<u8>> {
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| DeviceError::Driver {
                call: "nvrtcCreateProgram",
                reason: format!("a zero byte in {}", source.name),
            })
        };
        let (text, name) = (c_string(source.text)?, c_string(source.name)?);
        let mut headers = Vec::new();
        for header in HEADERS {
            let file = header.name.rsplit('/').next().unwrap_or(header.name);
            // As files of `kernels/`, of its folders, and the headers themselves name it.
            for name in [format!("lib/{file}.cuh"), format!("../lib/{file}.cuh"), format!("{file}.cuh")] {
                headers.push((c_string(&name)?, c_string(header.text)?));
            }
        }
        let header_texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let header_names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let options = options(architecture);
        let options = options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: C strings that live until the program is destroyed, and as many as is said.
        unsafe {
            call!(nvrtcCreateProgram(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                header_names.len() as c_int,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            ))?;
            let compiled = call!(nvrtcCompileProgram(program, options.len() as c_int, options.as_ptr()));
            let machine_code = compiled.and_then(|()| cubin(program)).map_err(|error| {
                let reason = format!("{} for sm_{architecture}: {error}\n{}", source.name, log(program));
                DeviceError::Driver { call: "nvrtcCompileProgram", reason }
            });
            call!(nvrtcDestroyProgram(&raw mut program))?;
            machine_code
        }
    }
}

fn options(architecture: &str) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture=sm_{architecture}")];
    options.extend(OPTIONS.map(str::to_owned));
    options
}

/// # Safety
/// A program that was compiled.
unsafe fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>> {
    let mut len = 0;
    // SAFETY: the caller's; the buffer has the length that the library says.
    unsafe {
        call!(nvrtcGetCUBINSize(program, &raw mut len))?;
        let mut bytes = vec![0u8; len];
        call!(nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast()))?;
        Ok(bytes)
    }
}

/// # Safety
/// A program that was created.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    let mut len = 0;
    // SAFETY: the caller's; the buffer has the length that the library says, its last byte being zero.
    unsafe {
        if call!(nvrtcGetProgramLogSize(program, &raw mut len)).is_err() {
            return String::new();
        }
        let mut bytes = vec![0u8; len + 1];
        if call!(nvrtcGetProgramLog(program, bytes.as_mut_ptr().cast())).is_err() {
            return String::new();
        }
        CStr::from_bytes_until_nul(&bytes).map(|log| log.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// Where machine code comes from on a machine.
#[derive(Debug)]
pub struct Loader {
    compiler: Option<Compiler>,
    architecture: Option<String>,
    cache: Option<PathBuf>,
}

impl Loader {
    /// For cards of this capability. What NVRTC makes is kept in `cache`.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] if there are neither fatbins in the program nor NVRTC.
    pub fn new(capability: (u32, u32), cache: Option<&Path>) -> Result<Self> {
        let compiler = if FATBINS.is_empty() { Compiler::find()? } else { None };
        let architecture = compiler.as_ref().and_then(|c| c.architecture(capability));
        if FATBINS.is_empty() && architecture.is_none() {
            let (major, minor) = capability;
            let what = match &compiler {
                None => "CUDA: NVRTC (libnvrtc) was not found, and this program has no kernels built in"
                    .to_owned(),
                Some(c) => {
                    format!("compute capability {major}.{minor}: NVRTC {:?} does not know it", c.version)
                }
            };
            return Err(DeviceError::Unsupported { device: "this machine".to_owned(), what });
        }
        Ok(Loader { compiler, architecture, cache: cache.map(Path::to_owned) })
    }

    /// Machine code of a file.
    ///
    /// # Errors
    /// The compiler's.
    pub fn image(&self, source: &Source) -> Result<Vec<u8>> {
        if let Some((_, fatbin)) = FATBINS.iter().find(|(file, _)| *file == source.name) {
            return Ok(fatbin.to_vec());
        }
        let (Some(compiler), Some(architecture)) = (&self.compiler, &self.architecture) else {
            let reason = format!("{} is not built in", source.name);
            return Err(DeviceError::Driver { call: "kernels", reason });
        };
        let kept = self.cache.as_deref().map(|folder| kept_path(folder, source, architecture, compiler));
        if let Some(path) = &kept
            && let Some(bytes) = read_kept(path)
        {
            return Ok(bytes);
        }
        let bytes = compiler.compile(source, architecture)?;
        if let Some(path) = &kept
            && let Err(error) = keep(path, &bytes)
        {
            tracing::warn!(path = %path.display(), %error, "compiled kernels cannot be kept");
        }
        Ok(bytes)
    }
}

fn kept_path(folder: &Path, source: &Source, architecture: &str, compiler: &Compiler) -> PathBuf {
    let mut hash = Sha256::new();
    for header in HEADERS {
        hash.update(header.name);
        hash.update(header.text);
    }
    hash.update(source.text);
    hash.update(options(architecture).join(" "));
    hash.update(format!("{:?}", compiler.version));
    let digest: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
    folder.join(format!("{}.sm_{architecture}.{digest}.cubin", source.name.replace('/', "-")))
}

/// What was kept, if it is whole.
fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let mut file = fs::read(path).ok()?;
    let bytes = file.split_off(32.min(file.len()));
    (file.as_slice() == Sha256::digest(&bytes).as_slice()).then_some(bytes)
}

/// Writes it under another name first, so that it is there whole or not at all.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let mut file = Sha256::digest(bytes).to_vec();
    file.extend_from_slice(bytes);
    fs::write(&partial, file)?;
    fs::rename(&partial, path).inspect_err(|_| {
        // Nothing else knows of it.
        let _ = fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_only_if_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels/a.cubin");
        assert_eq!(read_kept(&path), None);
        keep(&path, b"machine code").unwrap();
        assert_eq!(read_kept(&path).as_deref(), Some(&b"machine code"[..]));
        let file = fs::read(&path).unwrap();
        for cut in [0, 10, 32, file.len() - 1] {
            fs::write(&path, &file[..cut]).unwrap();
            assert_eq!(read_kept(&path), None, "{cut} bytes");
        }
        let mut changed = file.clone();
        changed[40] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_eq!(read_kept(&path), None);
    }

    #[test]
    fn the_nearest_architecture_of_the_generation() {
        let compiler = Compiler { version: (13, 0), architectures: vec![75, 80, 86, 89, 90, 100, 120] };
        let name = |major, minor| compiler.architecture((major, minor));
        assert_eq!(name(8, 0).as_deref(), Some("80"));
        assert_eq!(name(8, 7).as_deref(), Some("86"));
        assert_eq!(name(9, 0).as_deref(), Some("90a"));
        assert_eq!(name(12, 1).as_deref(), Some("120"));
        assert_eq!(name(11, 0), None);
    }
}
