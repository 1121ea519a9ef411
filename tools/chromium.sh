#!/bin/sh
# Make sure that a Chromium is there for the browser checks; install Debian's where that is possible.
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ]; then as=
elif sudo -n true 2>/dev/null; then as='sudo -n'
else echo 'The browser checks need Chromium: sudo apt-get install chromium' >&2; exit 1
fi
command -v apt-get >/dev/null || { echo 'The browser checks need Chromium: install it with your package manager' >&2; exit 1; }
echo 'Installing chromium with apt-get ...'
$as apt-get update -qq && $as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
