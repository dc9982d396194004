//! Taking a distribution's kernel image apart: the vmlinux inside a bzImage, and a vmlinux
//! that no longer says it can be booted by PVH.
//!
//! Sources: the kernel's `Documentation/arch/x86/boot.rst` (setup header), the ELF-64 object
//! format, and `include/xen/interface/elfnote.h` for the note.

use anyhow::{Context, Result, bail, ensure};

use super::lz4;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry of a PVH guest.
const PVH_ENTRY: u32 = 18;
const PT_NOTE: u32 = 4;

/// Extracts and decompresses the ELF image inside a bzImage.
///
/// # Errors
/// When it is not a bzImage, or not compressed with LZ4 as Debian's are.
pub fn vmlinux(bzimage: &[u8]) -> Result<Vec<u8>> {
    ensure!(bzimage.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage: no setup header");
    let setup_sectors = match byte(bzimage, 0x1f1)? {
        // Zero means four, for images from before the field.
        0 => 4,
        n => u64::from(n),
    };
    let start = (setup_sectors + 1) * 512 + u64::from(word(bzimage, 0x248)?);
    let length = u64::from(word(bzimage, 0x24c)?);
    let payload = slice(bzimage, start, length).context("the payload")?;
    // The kernel's build appends the decompressed size.
    let (frame, size) = payload.split_last_chunk::<4>().context("an empty payload")?;
    let image = lz4::decompress(frame).context("the payload is not LZ4, or damaged")?;
    ensure!(
        image.len() == u32::from_le_bytes(*size) as usize,
        "the payload has {} bytes and promises {}",
        image.len(),
        u32::from_le_bytes(*size)
    );
    ensure!(image.starts_with(b"\x7fELF"), "the payload is not ELF");
    Ok(image)
}

/// Makes the PVH note unrecognisable, so that a loader must take the ELF entry point.
///
/// # Errors
/// When the image is not ELF-64 or has no such note.
pub fn deface_pvh_note(vmlinux: &mut [u8]) -> Result<()> {
    ensure!(vmlinux.starts_with(b"\x7fELF\x02\x01"), "not a little-endian ELF-64");
    let headers = long(vmlinux, 0x20)?;
    let header_size = u64::from(half(vmlinux, 0x36)?);
    for n in 0..u64::from(half(vmlinux, 0x38)?) {
        let header = headers + n * header_size;
        if word(vmlinux, header)? != PT_NOTE {
            continue;
        }
        let mut at = long(vmlinux, header + 8)?;
        let end = at + long(vmlinux, header + 32)?;
        while at + 12 <= end {
            let name_size = u64::from(word(vmlinux, at)?);
            let content_size = u64::from(word(vmlinux, at + 4)?);
            let name = slice(vmlinux, at + 12, name_size)?;
            if word(vmlinux, at + 8)? == PVH_ENTRY && name == b"Xen\0" {
                let name = usize::try_from(at + 12)?;
                vmlinux[name..name + 3].copy_from_slice(b"Not");
                return Ok(());
            }
            at += 12 + name_size.next_multiple_of(4) + content_size.next_multiple_of(4);
        }
    }
    bail!("the image has no PVH note")
}

fn slice(image: &[u8], at: u64, len: u64) -> Result<&[u8]> {
    let start = usize::try_from(at)?;
    let end = usize::try_from(at.saturating_add(len))?;
    image.get(start..end).with_context(|| format!("the image ends before {end:#x}"))
}

fn array<const N: usize>(image: &[u8], at: u64) -> Result<[u8; N]> {
    Ok(slice(image, at, N as u64)?.try_into()?)
}

fn byte(image: &[u8], at: u64) -> Result<u8> {
    Ok(array::<1>(image, at)?[0])
}

fn half(image: &[u8], at: u64) -> Result<u16> {
    array(image, at).map(u16::from_le_bytes)
}

fn word(image: &[u8], at: u64) -> Result<u32> {
    array(image, at).map(u32::from_le_bytes)
}

fn long(image: &[u8], at: u64) -> Result<u64> {
    array(image, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf_with_notes(notes: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x40 + 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[0x20] = 0x40; // e_phoff
        image[0x36] = 56; // e_phentsize
        image[0x38] = 1; // e_phnum
        image[0x40] = 4; // p_type
        image[0x48] = 0x40 + 56; // p_offset
        image[0x60] = u8::try_from(notes.len()).unwrap(); // p_filesz
        image.extend_from_slice(notes);
        image
    }

    fn note(name: &[u8; 4], kind: u32) -> Vec<u8> {
        [&4_u32.to_le_bytes()[..], &6_u32.to_le_bytes(), &kind.to_le_bytes(), name, &[7; 8]].concat()
    }

    #[test]
    fn only_the_pvh_note_is_defaced() {
        let notes = [note(b"GNU\0", 18), note(b"Xen\0", 5), note(b"Xen\0", 18)].concat();
        let mut image = elf_with_notes(&notes);
        deface_pvh_note(&mut image).unwrap();
        let expected = [note(b"GNU\0", 18), note(b"Xen\0", 5), note(b"Not\0", 18)].concat();
        assert_eq!(image, elf_with_notes(&expected));
        assert!(deface_pvh_note(&mut image).is_err(), "there is no second one");
    }

    #[test]
    fn a_file_that_is_not_a_kernel_is_refused() {
        assert!(vmlinux(b"MZ").is_err());
        assert!(vmlinux(&[0; 4096]).is_err());
        assert!(deface_pvh_note(&mut [0; 4]).is_err());
        let mut cut = elf_with_notes(&note(b"Xen\0", 18));
        cut.truncate(0x40 + 56 + 13);
        assert!(deface_pvh_note(&mut cut).is_err());
    }
}
