#!/bin/sh
# docs/page.png, which the README shows: the top of the default study's page as a browser draws it. Needs chromium.
cd "$(dirname "$0")/.." || exit
chromium --headless --no-sandbox --hide-scrollbars --force-device-scale-factor=1 --window-size=1280,1400 \
    --screenshot=docs/page.png "file://$PWD/results/index.html" 2>/dev/null
