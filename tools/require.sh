#!/bin/sh
# Checks that programs are installed, and names the packages of those that are missing.
# usage: require.sh node|npm|python ...
fail() {
  echo "loraline setup: $1" >&2
  exit 1
}
for what in "$@"; do
  case $what in
    node)
      command -v node >/dev/null || fail "Node.js is missing. Install Node 20 or newer (Debian: apt-get install nodejs npm)."
      major=$(node -p 'process.versions.node.split(".")[0]')
      [ "$major" -ge 20 ] || fail "Node.js $(node --version) is too old; 20 or newer is needed to install the project's own Node 26."
      ;;
    npm)
      command -v npm >/dev/null || fail "npm is missing. It comes with Node.js (Debian: apt-get install npm)."
      ;;
    python)
      command -v python3 >/dev/null || fail "python3 is missing. Install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)."
      python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$(python3 --version) is too old; 3.11 or newer is needed. (Debian 12: apt-get install python3 python3-venv.)"
      python3 -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$(command -v python3) cannot create environments: the venv module is missing (Debian: apt-get install python3-venv)."
      ;;
  esac
done
