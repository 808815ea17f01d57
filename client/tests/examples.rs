//! Every public method of the library has an example, which the documentation's tests run.

use std::path::Path;

#[test]
fn every_public_method_has_an_example() {
    let mut without = Vec::new();
    let mut with = 0;
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in sources(&src) {
        let text = std::fs::read_to_string(&file).expect("a source");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            if !line.starts_with("pub fn ") && !line.starts_with("pub async fn ") {
                continue;
            }
            let above = lines[..number].iter().rev();
            let mut docs =
                above.take_while(|line| line.starts_with("///") || line.starts_with("#["));
            if docs.any(|line| line.starts_with("/// ```")) {
                with += 1;
            } else {
                without.push(format!("{}:{}: {line}", file.display(), number + 1));
            }
        }
    }
    assert!(
        with >= 60,
        "only {with} methods found: is this still the right place?"
    );
    assert!(
        without.is_empty(),
        "no example in the documentation of:\n{}",
        without.join("\n")
    );
}

fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("listed");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let deeper = |path: std::path::PathBuf| {
        if path.is_dir() {
            sources(&path)
        } else {
            vec![path]
        }
    };
    paths.flat_map(deeper).collect()
}
