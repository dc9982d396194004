use std::path::PathBuf;

/// What to boot (`PUT /boot-source`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSourceConfig {
    /// Kernel: ELF (PVH or 64-bit Linux protocol) or bzImage.
    pub kernel_image_path: PathBuf,
    /// Optional initrd or initramfs.
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line as the caller sent it; `None` means the default one.
    pub boot_args: Option<String>,
}
