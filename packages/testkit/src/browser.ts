/** A real browser for tests of pages: the system's own Chromium. */
import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

export type { Page } from "playwright-core";

const places = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];

/** @param path - the program; absent: it is looked for. */
export async function startBrowser(path = process.env["CHROMIUM"] ?? places.find((place) => existsSync(place))): Promise<Browser> {
  if (path === undefined)
    throw new Error("there is no Chromium: install one (Debian: apt-get install chromium), or say where it is with CHROMIUM=/path/to/it.");
  // In containers tests run as root and /dev/shm is small.
  return chromium.launch({ executablePath: path, args: ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"] });
}
