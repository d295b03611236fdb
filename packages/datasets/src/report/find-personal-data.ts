/** Finds personal data in texts: patterns and context words after Presidio 2.2.366 (MIT, Microsoft), checksums by validator. */
import validator from "validator";
import { type Hit, type Span, unique } from "./inspect-text.ts";

interface Kind {
  readonly kind: string;
  readonly pattern: RegExp;
  readonly is?: (candidate: string) => boolean;
  /** The candidate may be any number: it counts if one of these words is near. */
  readonly near?: RegExp;
}

const compact = (text: string): string => text.replace(/[ .-]/g, "");
/** Domains reserved for documentation (RFC 2606): such an address belongs to nobody. */
const isExample = (email: string): boolean =>
  /@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:test|example|invalid|localhost))$/i.test(email);

/** Cheap patterns find candidates; then checksums and a library decide. */
const personal: readonly Kind[] = [
  { kind: "email", pattern: /[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}/g, is: (text) => validator.isEmail(text) && !isExample(text) },
  {
    kind: "phone",
    pattern: /(?<![\w.+-])(?:\+\d[\d -]{8,17}\d|1[3-9]\d{9})(?![\w.-]*\w)/g,
    is: (text) => validator.isMobilePhone(text.replace(/[ -]/g, "")),
  },
  {
    kind: "phone",
    pattern: /(?<![\w.+-])(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}(?![\w-])/g,
    is: (text) => validator.isMobilePhone(text.replace(/[ ().-]/g, ""), "en-US"),
  },
  { kind: "card", pattern: /(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w.-]*\w)/g, is: (text) => validator.isCreditCard(text) },
  {
    kind: "iban",
    pattern: /(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?(?!\w)/g,
    is: (text) => validator.isIBAN(text.replaceAll(" ", "")),
  },
  { kind: "id-card", pattern: /(?<![\w.-])\d{17}[\dXx](?![\w-])/g, is: (text) => validator.isIdentityCard(text, "zh-CN") },
  { kind: "us-ssn", pattern: /(?<![\w-])(?!000|666|9)\d{3}([- ])(?!00)\d\d\1(?!0000)\d{4}(?![\w-])/g },
  { kind: "us-ssn", pattern: /(?<![\w.-])(?!000|666|9)\d{9}(?![\w.-]*\w)/g, near: /\bssns?\b|social security/i },
  { kind: "us-itin", pattern: /(?<![\w-])9\d\d([- ])(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])\1\d{4}(?![\w-])/g },
  {
    kind: "ca-sin",
    pattern: /(?<![\w.-])[1-79]\d\d([- ]?)\d{3}\1\d{3}(?![\w-])/g,
    is: (text) => validator.isLuhnNumber(compact(text)),
    near: /\bsin\b|social insurance|assurance sociale/i,
  },
  { kind: "uk-nino", pattern: /(?<!\w)(?!BG|GB|NK|KN|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)/g },
  { kind: "uk-nhs", pattern: /(?<![\w.-])\d{3}([- ]?)\d{3}\1\d{4}(?![\w-])/g, is: isNhsNumber, near: /\bnhs\b|national health/i },
  {
    kind: "in-aadhaar",
    pattern: /(?<![\w.-])[2-9]\d{3}([- ])\d{4}\1\d{4}(?![\w-])/g,
    is: (text) => validator.isIdentityCard(compact(text), "IN"),
  },
  {
    kind: "in-aadhaar",
    pattern: /(?<![\w.-])[2-9]\d{11}(?![\w.-]*\w)/g,
    is: (text) => validator.isIdentityCard(text, "IN"),
    near: /aadha?ar|uidai|आधार/i,
  },
  { kind: "in-pan", pattern: /(?<!\w)[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z](?!\w)/g },
  { kind: "es-dni", pattern: /(?<!\w)(?:[XYZ]-?\d{7}|\d{8})-?[A-Z](?!\w)/g, is: (text) => validator.isIdentityCard(compact(text), "ES") },
  {
    kind: "it-fiscal-code",
    pattern: /(?<!\w)[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z](?!\w)/g,
    is: (text) => validator.isTaxID(text, "it-IT"),
  },
  { kind: "pl-pesel", pattern: /(?<![\w.-])\d{11}(?![\w.-]*\w)/g, is: (text) => validator.isIdentityCard(text, "PL"), near: /pesel/i },
  {
    kind: "de-tax-id",
    pattern: /(?<![\w.-])[1-9]\d ?\d{3} ?\d{3} ?\d{3}(?![\w-])/g,
    is: (text) => validator.isTaxID(compact(text), "de-DE"),
    near: /steuer-?(?:id|nummer|identifikation)|tax id|\bidnr\b/i,
  },
  { kind: "fi-hetu", pattern: /(?<!\w)\d{6}[-+A-FU-Y]\d{3}[\dA-FHJ-NPR-Y](?!\w)/g, is: (text) => validator.isIdentityCard(text, "FI") },
  {
    kind: "th-id",
    pattern: /(?<![\w.-])[1-8]\d{12}(?![\w.-]*\w)/g,
    is: (text) => validator.isIdentityCard(text, "TH"),
    near: /national id|thai|เลข|บัตร/i,
  },
  { kind: "sg-nric", pattern: /(?<!\w)[STFGM]\d{7}[A-Z](?!\w)/g, near: /nric|\bfin\b|singapore|identity/i },
  { kind: "kr-rrn", pattern: /(?<![\w-])\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-[1-8]\d{6}(?![\w-])/g },
  {
    kind: "br-cpf",
    pattern: /(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d\d(?![\w-])/g,
    is: (text) => validator.isTaxID(text, "pt-BR"),
  },
  {
    kind: "passport",
    pattern: /(?<!\w)(?:[A-Z]{1,2}\d{6,8}|\d{9}|[CFGHJK](?=[A-Z]*\d)[A-Z\d]{8})(?!\w)/g,
    near: /passport|reisepass|passeport|pasaporte|护照|護照|パスポート/i,
  },
];

/** The last digit of an NHS number checks the others, modulo 11. */
function isNhsNumber(text: string): boolean {
  const digits = compact(text).split("").map(Number);
  const sum = digits.slice(0, 9).reduce((total, digit, at) => total + digit * (10 - at), 0);
  return (11 - (sum % 11)) % 11 === digits[9];
}

/** Characters before and after a candidate in which a word of its context counts. */
const context = { before: 60, after: 30 };

function spansOf({ kind, pattern, is, near }: Kind, text: string): Span[] {
  if (near !== undefined && !near.test(text)) return [];
  return [...text.matchAll(pattern)].flatMap(({ 0: candidate, index: start }) => {
    const end = start + candidate.length;
    if (is !== undefined && !is(candidate)) return [];
    const isNear = near === undefined || near.test(text.slice(Math.max(0, start - context.before), end + context.after));
    return isNear ? [{ start, end, kind }] : [];
  });
}

const [email, ...numbers] = personal as [Kind, ...Kind[]];

/** @returns where a text has personal data. Names and addresses are not looked for: they need a model. */
export function personalSpans(text: string): Span[] {
  const tried = [...(text.includes("@") ? [email] : []), ...(mayHoldNumber.test(text) ? numbers : [])];
  return tried.flatMap((kind) => spansOf(kind, text));
}
/** Every number above has six digits at least, with two of them side by side, or four between letters. */
const mayHoldNumber = /\d\d(?:[^\d\n]{0,3}\d){4}|\d[\dA-Z]{4,}\d|[A-Z]\d{4}[A-Z]/;

/** @returns each kind of personal data of each text, once. */
export const findPersonalData = (texts: readonly string[]): Hit[] =>
  unique(texts.flatMap((content, text) => personalSpans(content).map(({ kind }) => ({ text, kind }))));
