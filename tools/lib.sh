# Shared by the scripts of this folder: where things are built, and what has to be installed.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# One folder for all checkouts and scripts, outside of them: the C++ of RocksDB is built once.
cache="${XDG_CACHE_HOME:-$HOME/.cache}"
[ "$(uname)" = Darwin ] && cache="$HOME/Library/Caches"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/thalweg/target}"

# Cargo goes by times: what another checkout built here after this one was made would pass for this one's.
mkdir -p "$CARGO_TARGET_DIR"
if [ "$(cat "$CARGO_TARGET_DIR/checkout" 2>/dev/null)" != "$root" ]; then
    touch "$root"/{src/lib.rs,src/main.rs,tests/it/main.rs,benches/main.rs,tools/inspect/main.rs}
    echo "$root" >"$CARGO_TARGET_DIR/checkout"
fi

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs packages of Debian or Ubuntu, if any are named.
install_packages() {
    [ $# -gt 0 ] || return 0
    say "Installing $* …"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

# Installs the compiler and the library that RocksDB's bindings are made with.
install_build_tools() {
    if ! command -v cargo >/dev/null; then
        [ -x "$HOME/.cargo/bin/cargo" ] && export PATH="$HOME/.cargo/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null; then
        say "Rust is missing. Install it with rustup (https://rustup.rs), then run this again."
        exit 1
    fi
    case "$(uname)" in
    Darwin)
        xcode-select -p >/dev/null 2>&1 || { say "Run: xcode-select --install"; exit 1; }
        if command -v brew >/dev/null && ! brew list llvm >/dev/null 2>&1; then
            say "Installing llvm (once) …"
            brew install llvm
        fi
        command -v brew >/dev/null && LIBCLANG_PATH="$(brew --prefix llvm)/lib" && export LIBCLANG_PATH
        ;;
    *)
        local missing=()
        command -v clang >/dev/null || missing+=(clang)
        command -v make >/dev/null || missing+=(make)
        command -v c++ >/dev/null || missing+=(g++)
        # What `clang` itself brings, libclang.so.1, is not found by the bindings.
        compgen -G '/usr/lib/llvm-*/lib/libclang.so' >/dev/null || missing+=(libclang-dev)
        [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
        [ -e /usr/include/zlib.h ] || missing+=(zlib1g-dev)
        command -v python3 >/dev/null || missing+=(python3)
        install_packages ${missing[@]+"${missing[@]}"}
        ;;
    esac
}

# Installs Java and Maven, which fetch and run a broker.
install_java() {
    case "$(uname)" in
    Darwin)
        command -v mvn >/dev/null || { say "Installing Maven and Java (once) …"; brew install maven openjdk@17; }
        ;;
    *)
        local missing=()
        java -version >/dev/null 2>&1 || missing+=(openjdk-17-jre-headless)
        command -v mvn >/dev/null || missing+=(maven)
        install_packages ${missing[@]+"${missing[@]}"}
        ;;
    esac
}
