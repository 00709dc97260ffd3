# Makes .venv and fills it from the lock files. Sourced by demo and test, from the root of the repository.
#
# Needs Python 3.11 or later and nothing else. What is missing comes from Debian where this user may install it (root,
# or sudo without a password); else the exact line to run is said. When nothing has changed since the last time,
# nothing is done.

venv=.venv
restore_policy=:

say() {
    printf '\033[1m== %s\033[0m\n' "$*" >&2
}

die() {
    printf '!! %s\n' "$@" >&2
    exit 1
}

may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# A fresh machine may be busy with its own first update: it is waited for.
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >/dev/null
}

# install_debian PACKAGE...: as Debian has them, without starting any service. Returns 1 if that cannot be done.
install_debian() {
    may_install && forbid_services || return 1
    say "installing from Debian: $*"
    # Lists may be missing (a fresh container) or old (a package has moved on); or somebody else is getting them.
    apt_install "$@" 2>/dev/null || { as_root apt-get update -qq; apt_install "$@"; }
    installed=$?
    $restore_policy
    restore_policy=:
    trap - EXIT
    return $installed
}

# Debian starts what it installs unless policy-rc.d says 101. A policy of the operator's own is not touched.
forbid_services() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        as_root "$policy" any start >/dev/null 2>&1
        [ $? = 101 ] && return 0
        say "not installing from Debian: $policy would let the service start"
        return 1
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy" || return 1
    restore_policy="as_root rm -f $policy"
    trap '$restore_policy' EXIT
    trap 'exit 130' INT TERM
}

is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for python in python3 python3.11 python3.12 python3.13 python3.14; do
        is_recent "$python" && return 0
    done
    die "Python 3.11 or later is needed. On Debian 12: apt-get install python3"
}

make_venv() {
    is_recent "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return 0
    find_python
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_debian "$python-venv" ||
            die "Python's venv module is missing, and this user may not install it. Run, as root:" \
                "    apt-get install $python-venv" "and then this command again."
    fi
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || die "cannot make $venv"
}

# set_up LOCK...: after it, $venv has what the locks name, at those versions and hashes, and the package itself.
set_up() {
    wanted="$(pwd) $* $(cat "$@" pyproject.toml | cksum)"
    [ "$(cat "$venv/.set-up" 2>/dev/null)" = "$wanted" ] && [ -x "$venv/bin/sse-gateway" ] && return 0
    make_venv
    say "installing: $*"
    files=
    for lock in requirements-build.lock "$@"; do files="$files -r $lock"; done
    pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 10"
    # shellcheck disable=SC2086 # words
    $pip --require-hashes $files || die "cannot install what $* name (see above)"
    $pip --no-deps --no-build-isolation --editable . || die "cannot install the package (see above)"
    echo "$wanted" >"$venv/.set-up"
}
