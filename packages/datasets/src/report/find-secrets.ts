/** Finds keys, tokens and passwords in texts, by the rules of gitleaks and secretlint. */
import { lintSource } from "@secretlint/core";
import { creator as secretlintRules } from "@secretlint/secretlint-rule-preset-recommend";
import { RE2JS } from "re2js";
import { allowedEverywhere, gitleaksRules } from "./gitleaks-rules.ts";
import { type Hit, type Span, unique } from "./inspect-text.ts";

/** @returns each kind of secret of each text, once. What several rules find at one place is told as the first of them names it. */
export async function findSecrets(texts: readonly string[]): Promise<Hit[]> {
  return unique((await secretSpans(texts)).flatMap((found, text) => firstOfEachPlace(found).map(({ kind }) => ({ text, kind }))));
}

/** @returns where each text has secrets. Several rules may find one place; the rule that names it best comes first. */
export async function secretSpans(texts: readonly string[]): Promise<Span[][]> {
  const spans = texts.map((text) => [...gitleaksSpans(text), ...passwordSpans(text)]);
  for (const { text, ...span } of await secretlintHits(texts)) spans[text]?.push(span);
  return spans;
}

const firstOfEachPlace = (spans: readonly Span[]): Span[] => {
  const kept: Span[] = [];
  for (const span of spans) if (!kept.some(({ start, end }) => span.start < end && start < span.end)) kept.push(span);
  return kept;
};

const separator = "\n\u0000\n";

/** Secretlint's recommended rules: well-known services, and what gitleaks lacks, such as passwords in URLs. */
async function secretlintHits(texts: readonly string[]): Promise<(Span & { text: number })[]> {
  const starts: number[] = [];
  let length = 0;
  for (const text of texts) {
    starts.push(length);
    length += text.length + separator.length;
  }
  const { messages } = await lintSource({
    source: { filePath: "/dataset.txt", ext: ".txt", contentType: "text", content: texts.join(separator) },
    options: { config: { rules: [{ id: "@secretlint/secretlint-rule-preset-recommend", rule: secretlintRules, options: {} }] } },
  });
  return messages.map(({ messageId, range: [start, end] }) => {
    const text = starts.findLastIndex((from) => from <= start);
    const from = starts[text] ?? 0;
    return { text, kind: messageId.toLowerCase(), start: start - from, end: end - from };
  });
}

/* --- gitleaks --- */

type AllowList = typeof allowedEverywhere;
type Rule = (typeof gitleaksRules)[number];
interface Allowed extends Omit<AllowList, "regexes"> {
  readonly regexes: readonly RE2JS[];
}

const compiled = new Map<string, RE2JS>();
/** RE2's regexes take time that grows with the text only, whatever the text is. They are compiled when they are first needed. */
function regexOf(source: string): RE2JS {
  const known = compiled.get(source);
  if (known !== undefined) return known;
  const regex = RE2JS.compile(source);
  compiled.set(source, regex);
  return regex;
}
const allowedOf = (list: AllowList): Allowed => ({ ...list, regexes: list.regexes.map(regexOf) });

/** What a secret stands in: letters without a gap. Those that are plain words, in small letters without a digit, are not looked at. */
const run = /-----BEGIN|\bcurl\b|[\w+/=.~:@%$-]{12,}/g;
const notAWord = /\d|_|[a-z-][A-Z]|[A-Z]{16}/;
/** What the rules ask for around a secret is shorter than this. */
const before = 128;
const after = 16;
/** No secret begins later in a run. */
const longestRun = 4096;
/** How far rules look that begin with such a word. */
const reach: Readonly<Record<string, number>> = { "-----BEGIN": 12_000, curl: 1000 };

/** The parts of a text that are worth looking at, ascending and apart. */
function windowsOf(text: string): { from: number; to: number }[] {
  const windows: { from: number; to: number }[] = [];
  for (const { 0: found, index } of text.matchAll(run)) {
    const length = reach[found] ?? Math.min(found.length, longestRun);
    if (reach[found] === undefined && !notAWord.test(found)) continue;
    const from = Math.max(0, index - before);
    const to = Math.min(text.length, index + length + after);
    const last = windows.at(-1);
    if (last !== undefined && from <= last.to) last.to = Math.max(last.to, to);
    else windows.push({ from, to });
  }
  return windows;
}

function gitleaksSpans(text: string): Span[] {
  return windowsOf(text).flatMap(({ from, to }) => {
    const part = text.slice(from, to);
    const lower = part.toLowerCase();
    return specificFirst
      .filter(({ id, keywords }) => keywords.some((word) => lower.includes(word)) && cheaper[id]?.test(part) !== false)
      .flatMap((rule) => spansOf(rule, part).map(({ start, end, kind }) => ({ start: start + from, end: end + from, kind })));
  });
}
/** Native regexes that find all that two rules with everyday keywords find, and more: most text is spared the slower ones. */
const cheaper: Readonly<Record<string, RegExp>> = {
  "generic-api-key":
    /(?:access|auth|api|credential|creds|key|passw(?:or)?d|secret|token)[ \t\w.-]{0,20}[\s'"]{0,3}[=>:|?,][=>:|]{0,2}[`'"\s=]{0,5}[\w.=+/-]{10}/i,
  jwt: /ey\w{17}/,
};
/** The rule for all that looks like a key comes last: others know better what it is. */
const specificFirst = gitleaksRules.toSorted((a, b) => Number(a.id.startsWith("generic")) - Number(b.id.startsWith("generic")));

function spansOf({ id, regex, entropy, group, allowed }: Rule, text: string): Span[] {
  const spans: Span[] = [];
  const matcher = regexOf(regex).matcher(text);
  while (matcher.find()) {
    const groups = Array.from({ length: matcher.groupCount() }, (_, n) => n + 1);
    const at = group > 0 ? group : (groups.find((n) => (matcher.group(n) ?? "") !== "") ?? 0);
    const secret = matcher.group(at) ?? "";
    if (entropy > 0 && bitsPerCharacter(secret) <= entropy) continue;
    const match = matcher.group() ?? "";
    if ([allowedEverywhere, ...allowed].some((list) => allows(allowedOf(list), secret, match))) continue;
    spans.push({ start: matcher.start(at), end: matcher.end(at), kind: id });
  }
  return spans;
}

function allows({ target, regexes, stopwords }: Allowed, secret: string, match: string): boolean {
  const lower = secret.toLowerCase();
  return stopwords.some((word) => lower.includes(word)) || regexes.some((one) => one.matcher(target === "secret" ? secret : match).find());
}

/** Shannon's entropy of a text, in bits per character. */
function bitsPerCharacter(text: string): number {
  const counts = new Map<string, number>();
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  return [...counts.values()].reduce((sum, count) => sum - (count / text.length) * Math.log2(count / text.length), 0);
}

/* --- passwords, which people write without the form of a key --- */

const password =
  /(?:(?<!\w)(?:password|passwd|passphrase|passcode|pwd|passwort|kennwort|mot de passe|contraseña|senha)|密码|口令|密碼|パスワード|пароль)(?:\s{0,3}[:=：]|\s{1,3}(?:is|ist|est|es|é)\s{0,1}:?|是|为|為)\s{0,3}["'`“]?([^\s"'`“”，。；]{6,64})/giu;

/** Signs of a placeholder, of a rule about passwords, or of code that reads one from elsewhere. */
const noPassword = /^[<[{(]|\$\{|\*\*\*|xxx|\.\.\.|\(|^\$\w|^%\w+%$|^https?:/i;

/** A word after "password:" is one if it mixes letters with digits: others are mostly words about passwords. */
const passwordSpans = (text: string): Span[] =>
  [...text.matchAll(password)].flatMap((match) => {
    const secret = (match[1] ?? "").replace(/[.,;:!?)]+$/, "");
    const start = match.index + match[0].indexOf(match[1] ?? "");
    const is = secret.length >= 6 && /\d/.test(secret) && /[^\d\W_]|[^\w\s]/u.test(secret) && !noPassword.test(secret);
    return is ? [{ start, end: start + secret.length, kind: "password" }] : [];
  });
