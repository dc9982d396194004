use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use super::*;

struct Place {
    _outer: tempfile::TempDir,
    secret: std::path::PathBuf,
    inner: std::path::PathBuf,
    dir: Dir,
}

fn place() -> Place {
    let outer = tempfile::tempdir().unwrap();
    let secret = outer.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let dir = Dir::open(&inner).unwrap();
    Place { secret, inner, dir, _outer: outer }
}

#[test]
fn files_are_made_and_emptied() {
    let place = place();
    let (mut file, new) = place.dir.create(Path::new("f"), 0o755).unwrap();
    assert!(new);
    file.write_all(b"long text").unwrap();
    let (mut file, new) = place.dir.create(Path::new("f"), 0o755).unwrap();
    assert!(!new);
    file.write_all(b"short").unwrap();
    assert_eq!(fs::read(place.inner.join("f")).unwrap(), b"short");
    assert!(place.dir.create_new(Path::new("f"), 0o644, "x").is_err());
}

/// J1: a link, another name or a FIFO in the place of a file.
#[test]
fn what_was_planted_is_refused_and_its_target_untouched() {
    let place = place();
    let at = |name: &str| place.inner.join(name);
    symlink(&place.secret, at("link")).unwrap();
    symlink("/nowhere", at("dangling")).unwrap();
    fs::hard_link(&place.secret, at("hard")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::create_dir(at("dir")).unwrap();
    let why = |name: &str| place.dir.create(Path::new(name), 0o755).unwrap_err().to_string();
    assert!(why("link").contains("symbolic link") && why("dangling").contains("symbolic link"));
    assert_eq!(why("hard"), format!("Detected hard link at: {}", at("hard").display()));
    assert!(why("fifo").contains("not a regular file"));
    assert!(why("dir").contains("dir"));
    for name in ["link", "hard", "fifo", "dir"] {
        assert!(place.dir.create_new(Path::new(name), 0o644, "x").is_err(), "{name}");
        assert!(place.dir.node(Path::new(&format!("/{name}")), (1, 3), (0, 0)).is_err(), "{name}");
    }
    assert!(place.dir.read_if_any(Path::new("link")).is_err());
    assert_eq!(fs::read(&place.secret).unwrap(), b"secret");
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn directories_are_no_way_out() {
    let place = place();
    symlink(place.inner.parent().unwrap(), place.inner.join("up")).unwrap();
    for path in ["up/x", "../x", "up"] {
        assert!(place.dir.make_dirs(Path::new(path), 0o755).is_err() || path == "../x", "{path}");
        assert!(place.dir.create(Path::new(path), 0o755).is_err(), "{path}");
        assert!(place.dir.own_dir(Path::new(path), None, 0o700).is_err() || path == "../x", "{path}");
    }
    assert_eq!(fs::read_dir(place.inner.parent().unwrap()).unwrap().count(), 2);
    let made = place.dir.make_dirs(Path::new("a/b/c"), 0o755).unwrap();
    assert_eq!(made, [Path::new("a"), Path::new("a/b"), Path::new("a/b/c")]);
    assert!(place.dir.make_dirs(Path::new("a/b/c"), 0o755).unwrap().is_empty());
}

#[test]
fn trees_are_removed_and_what_links_point_to_stays() {
    let place = place();
    place.dir.make_dirs(Path::new("t/a/b"), 0o755).unwrap();
    fs::write(place.inner.join("t/a/f"), "x").unwrap();
    symlink(&place.secret, place.inner.join("t/link")).unwrap();
    symlink(place.inner.parent().unwrap(), place.inner.join("t/a/up")).unwrap();
    place.dir.remove_all(Path::new("t")).unwrap();
    assert!(!place.inner.join("t").exists());
    assert_eq!(fs::read(&place.secret).unwrap(), b"secret");
    place.dir.remove_all(Path::new("t")).unwrap();
}

/// J2: somebody swaps a directory for a link to another place all the time.
#[test]
fn races_are_lost_safely() {
    let place = place();
    let outside = place.inner.parent().unwrap().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(place.inner.join("d")).unwrap();
    symlink(&outside, place.inner.join("l")).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let (mut done, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let (d, l) = (place.inner.join("d"), place.inner.join("l"));
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                renameat_with(CWD, &d, CWD, &l, RenameFlags::EXCHANGE).unwrap();
            }
        });
        for n in 0..100_000 {
            match place.dir.create(Path::new(&format!("d/{}", n % 7)), 0o600) {
                Ok(_) => done += 1,
                Err(_) => refused += 1,
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(done > 0 && refused > 0, "{done} made, {refused} refused: no race");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something got out");
    assert_eq!(fs::metadata(&outside).unwrap().nlink(), 2);
}
