//! The systemd unit.

use super::files::KEY_FILE;
use super::quote::{unit_argument, unit_path, unit_word};
use super::{Endpoint, PROGRAM, SETTINGS_FILE};

/// What no endpoint needs, and so does not get.
const HARDENING: &str = "\
DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
";
/// The same, where no GPU may be used: its driver maps devices, and may write code.
const HARDENING_WITHOUT_GPU: &str = "\
PrivateDevices=yes
DevicePolicy=closed
MemoryDenyWriteExecute=yes
";
/// Ports below this one need a capability.
const FIRST_FREE_PORT: u16 = 1024;

pub(super) fn text(endpoint: &Endpoint<'_>) -> String {
    let (name, deployment) = (&endpoint.name, endpoint.deployment);
    let at = |file: &str| endpoint.dir.join(file).display().to_string();
    let mut text = format!(
        "# Written by `wardrobe deploy`. README.md beside this file tells how to install it.\n\
         [Unit]\n\
         Description=Wardrobe endpoint {title}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={program} serve --config {settings} --api-key-file ${{CREDENTIALS_DIRECTORY}}/{KEY_FILE}\n\
         LoadCredential={KEY_FILE}:{key}\n\
         CacheDirectory={name}\n\
         Environment=WARDROBE_CACHE=%C/{name} HOME=%C/{name}\n",
        title = unit_path(name),
        // The program's own path is not searched for variables.
        program = unit_word(&at(PROGRAM)),
        settings = unit_argument(&at(SETTINGS_FILE)),
        key = unit_path(&at(KEY_FILE)),
    );
    if deployment.job_folder.is_some() {
        text.push_str(&format!("StateDirectory={name}\nEnvironment=WARDROBE_JOB_FOLDER=%S/{name}/jobs\n"));
    }
    text.push_str(&format!(
        "# What is wrong with the settings does not mend itself.\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         RestartPreventExitStatus=2\n\
         # Longer than the endpoint takes to drain.\n\
         TimeoutStopSec={stop}\n\
         LimitNOFILE=65536\n\
         \n\
         ReadOnlyPaths={dir}\n",
        stop = endpoint.stop_seconds(),
        dir = unit_word(&endpoint.dir.display().to_string()),
    ));
    text.push_str(HARDENING);
    if !endpoint.may_use_gpu() {
        text.push_str(HARDENING_WITHOUT_GPU);
    }
    let capability = if deployment.port < FIRST_FREE_PORT { "CAP_NET_BIND_SERVICE" } else { "" };
    text.push_str(&format!(
        "CapabilityBoundingSet={capability}\nAmbientCapabilities={capability}\n\n[Install]\nWantedBy=multi-user.target\n"
    ));
    text
}
