import { describe, expect, it } from "vitest";
import { findPersonalData } from "./find-personal-data.ts";
import { findSecrets } from "./find-secrets.ts";

/** Written in parts, so that scanners of repositories do not take the tests for leaks. */
const whole = (...parts: string[]): string => parts.join("");
const kindsOf = async (text: string): Promise<string[]> => (await findSecrets([text])).map(({ kind }) => kind);
const personalOf = (text: string): string[] => findPersonalData([text]).map(({ kind }) => kind);

describe("secrets", () => {
  const filler = "Kj7Qw2Zx9Lm4Rt6Yb1Nc8Vd3Fg5Hs0Pa";
  const base64 = `${filler}${filler.toLowerCase()}${filler}`;
  it.each([
    ["aws-access-token", whole("use AK", "IA", "Z7QW2KXLM4RTYB3N for the bucket")],
    ["aws-access-token", whole("AK", "IA", "RVGURNBGAPOLSLKQ has no digit")],
    ["huggingface-organization-api-token", whole("api", "_org_", "fjafeqfnxbrtsnouotpsrwhsumorwcmwcl has none, and is small")],
    ["gcp-api-key", whole("The key: AI", "za", "SyD4kQ7xW2mN9vB1cR5tY8uH3jL6pZ0aEfG", " works")],
    [
      "jwt",
      whole(
        "Bearer ey",
        "JhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.ey",
        "JzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvIn0.",
        "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
      ),
    ],
    ["private-key", whole("-----BEGIN RSA PRIV", "ATE KEY-----\n", base64, "\n", base64, "\n-----END RSA PRIV", "ATE KEY-----")],
    ["github-pat", whole("gh", "p_wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx")],
    ["slack-bot-token", whole("xo", "xb-123456789012-1234567890123-abcdefABCDEF123456789012")],
    ["stripe-access-token", whole("sk", "_live_", filler.slice(0, 24))],
    ["gitlab-pat", whole("gl", "pat-", filler.slice(0, 20))],
    ["generic-api-key", whole("api_", "key = ", filler)],
    ["password", "password: hunter2"],
    ["password", "Das Passwort ist Sommer2024!"],
    ["password", "登录密码是 Zhang1990"],
  ])("finds %s", async (kind, text) => {
    expect(await kindsOf(text)).toEqual([kind]);
    expect(await kindsOf(`${"Some words before it. ".repeat(500)}${text}\n${"and after it. ".repeat(500)}`)).toEqual([kind]);
  });

  it.each([
    "password: <your password here>",
    "password: ${DB_PASSWORD_1}",
    "The password must have 12 characters, and is checked when you sign in.",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "api_version = 2024-05-01-preview",
    "const apiKey = loadKey(2);",
    "see https://site.io/a/b/c/1234567890abcdef",
    "2f1c8a52-7d0e-4f7a-9c1b-3b5d8e6f7a90",
  ])("does not take this for one: %s", async (text) => {
    expect(await kindsOf(text)).toEqual([]);
  });

  // A pattern that backtracks without end would run into the test's time limit.
  it("gets through hostile text", async () => {
    const hostile = [
      "curl ".repeat(4000),
      "-----BEGIN".repeat(2000),
      "key=1".repeat(10_000),
      `password: ${"a".repeat(100_000)}`,
      "ey1".repeat(50_000),
    ];
    expect(await findSecrets(hostile)).toBeInstanceOf(Array);
  });
});

describe("personal data", () => {
  it.each([
    ["us-ssn", "My SSN is 219-09-9999"],
    ["us-ssn", "social security number 219099999"],
    ["uk-nino", "NI number AB 12 34 56 C"],
    ["uk-nhs", "NHS number 943 476 5919"],
    ["in-aadhaar", "Aadhaar 2341 2341 2346"],
    ["in-pan", "PAN ABCPD1234E"],
    ["es-dni", "DNI 12345678Z"],
    ["it-fiscal-code", "codice fiscale DMLPRY77D15H501F"],
    ["pl-pesel", "PESEL 44051401359"],
    ["ca-sin", "SIN 193 456 787"],
    ["fi-hetu", "henkilötunnus 131052-308T"],
    ["kr-rrn", "주민등록번호 960121-1234567"],
    ["br-cpf", "CPF 111.444.777-35"],
    ["sg-nric", "NRIC S1234567D"],
    ["passport", "passport C01X00T47"],
    ["phone", "Call (415) 555-2671 now"],
  ])("finds %s", (kind, text) => {
    expect(personalOf(text)).toEqual([kind]);
  });

  it.each([
    "order 219099999 was sent",
    "943 476 5919 copies",
    "DNI 12345678A has a wrong letter",
    "version 1.2.3.4 of 2024-03-12 at 12:30:59",
    "A passport is needed at Christmas",
    "2341 2341 2347 has a wrong checksum",
  ])("does not take this for one: %s", (text) => {
    expect(personalOf(text)).toEqual([]);
  });
});
