//! Runs every file of the mesh's fuzz corpus through the body of its target.

#[path = "../../../fuzz/mesh.rs"]
mod mesh;

use std::path::Path;

#[test]
fn the_corpus_breaks_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, body) in mesh::ALL {
        let folder = root.join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            // The name of the file that broke something must be in the output.
            eprintln!("{}", path.display());
            body(&data);
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }
}
