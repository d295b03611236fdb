/** Links and paths in README.md and docs: what they point to exists. */
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "..");
const pages = ["README.md", ...globSync(["docs/**/*.md", "examples/**/*.md"], { cwd: root })];
const textOf = (page: string): string => readFileSync(join(root, page), "utf8");

/** A page without its code blocks, whose brackets are no links. */
const prose = (text: string): string => text.replaceAll(/^(```|~~~).*?^\1/gms, "");

/** The anchors that GitHub gives a page's headings: lower case, punctuation left out, blanks as hyphens, repetitions numbered. */
function anchorsOf(page: string): Set<string> {
  const anchors = new Set<string>();
  for (const [, heading = ""] of prose(textOf(page)).matchAll(/^#{1,6} +(.+)$/gm)) {
    const words = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase();
    const anchor = words.replaceAll(/[^\p{L}\p{M}\p{N}\p{Pc} -]/gu, "").replaceAll(" ", "-");
    let free = anchor;
    for (let repetition = 1; anchors.has(free); repetition += 1) free = `${anchor}-${repetition}`;
    anchors.add(free);
  }
  return anchors;
}

function brokenLinks(page: string): string[] {
  const links = [...prose(textOf(page)).matchAll(/\]\(([^()\s]+)\)/g)].map(([, link = ""]) => link);
  return links.filter((link) => {
    if (/^[a-z]+:/.test(link)) return false;
    const [path = "", anchor] = link.split("#");
    const target = path === "" ? page : relative(root, join(root, dirname(page), path));
    if (!existsSync(join(root, target))) return true;
    return anchor !== undefined && target.endsWith(".md") && !anchorsOf(target).has(anchor);
  });
}

const folders = ["docs", "examples", "helm", "infra", "packages", "samples", "services", "tests", "tools", "patches", ".ci"];
/** Files that a build or a user makes, so that a fresh checkout lacks them. */
const made = [/^services\/[a-z]+\/dist\b/, /\/node_modules\//];

/** Paths in backticks that begin with a folder of the repository. Braces, stars and placeholders stand for several, of which one has to exist. */
function missingPaths(page: string): string[] {
  const spans = [...textOf(page).matchAll(/`([^`\n]+)`/g)].flatMap(([, span = ""]) => span.split(/\s+/));
  const paths = spans
    .map((span) => span.replace(/(?::\d+|[,;.])$/, ""))
    .filter((span) => folders.some((folder) => span.startsWith(`${folder}/`)));
  return paths.filter((path) => {
    if (made.some((pattern) => pattern.test(path))) return false;
    const pattern = path.replaceAll(/<[^>]*>|[A-Z]{3,}|…/g, "*").replace(/\/$/, "");
    return globSync(pattern, { cwd: root }).length === 0;
  });
}

test.each(pages)("links and paths of %s lead somewhere", (page) => {
  expect(brokenLinks(page)).toEqual([]);
  expect(missingPaths(page)).toEqual([]);
});
