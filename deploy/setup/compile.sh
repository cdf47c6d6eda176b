#!/usr/bin/env bash
# Makes build/compiled: this source tree once more, with the hot path compiled as an installation has
# it (setup.py). Tests and benchmarks that shall meet the compiled modules run in that folder; the
# tree itself is never compiled, so that what is edited is what runs.
#
# Costs about a minute where a module of the hot path or what it imports has changed, else a copy.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly TREE=build/compiled PYTHON=$PWD/.venv/bin/python

say() { printf 'compile: %s\n' "$*" >&2; }

# What decides the compiled modules: all sources of the two packages, for types cross files.
wanted_stamp() {
    find setup.py repl nbdserver -name '*.py' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
        { cat; "$PYTHON" -VV; "$PYTHON" -m mypy --version; } | sha256sum | cut -d' ' -f1
}

# Everything that git would keep, and nothing that was removed from it.
copy_tree() {
    mkdir -p "$TREE"
    find "$TREE" -type f ! -name '*.so' ! -name compiled-stamp ! -path "$TREE/.cache/*" -delete
    git ls-files -z --cached --others --exclude-standard --deduplicate |
        while IFS= read -r -d '' file; do [[ -e $file ]] && printf '%s\0' "$file"; done |
        tar --create --null --files-from=- | tar --extract --directory "$TREE"
    # Not in git, and used by the tests: what set-up has fetched and installed.
    ln -sfn "$PWD/.venv" "$TREE/.venv"
    ln -sfn "$PWD/.cache" "$TREE/.cache"
}

compile() {
    local wanted log
    wanted=$(wanted_stamp)
    [[ -f $TREE/compiled-stamp && $(<"$TREE/compiled-stamp") == "$wanted" ]] && return 0
    say "compiling the hot path (about a minute)"
    find "$TREE" -name '*.so' -delete
    log=$(mktemp)
    if ! (cd "$TREE" && REPL_COMPILE=yes "$PYTHON" setup.py -q build_ext --inplace) >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        say "the hot path could not be compiled (above)"
        exit 1
    fi
    rm -rf "$log" "$TREE/build"
    echo "$wanted" >"$TREE/compiled-stamp"
}

copy_tree
compile
