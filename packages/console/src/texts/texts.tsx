/** Gives pages the words of the reader's language, and how they should look. */
import { createContext, type ReactNode, use, useCallback, useEffect, useMemo, useState } from "react";
import { en, type Texts } from "./en.ts";

/** English comes with the page; other languages only when somebody wants them. */
const languages: Record<string, { name: string; load: () => Promise<Texts> }> = {
  en: { name: en.name, load: () => Promise.resolve(en) },
  zh: { name: "中文", load: () => import("./zh.ts").then(({ zh }) => zh) },
};
export const languageNames = Object.entries(languages).map(([code, { name }]) => ({ code, name }));
export const themes = ["system", "light", "dark"] as const;
export type Theme = (typeof themes)[number];

interface Settings {
  texts: Texts;
  setLanguage: (code: string) => void;
  theme: Theme;
  setTheme: (theme: Theme) => void;
}
const SettingsContext = createContext<Settings | null>(null);

/** A browser may forbid storage; then the settings last as long as the page. */
const remembered = (key: string): string | null => {
  try {
    return localStorage.getItem(`loraline.${key}`);
  } catch {
    return null;
  }
};
const remember = (key: string, value: string): void => {
  try {
    localStorage.setItem(`loraline.${key}`, value);
  } catch {
    // As above.
  }
};

const firstLanguage = (): string => {
  const wanted = [remembered("language") ?? "", ...navigator.languages].map((tag) => tag.split("-", 1)[0] ?? "");
  return wanted.find((code) => code in languages) ?? "en";
};
const firstTheme = (): Theme => themes.find((one) => one === remembered("theme")) ?? "system";

export function SettingsProvider({ children }: { children: ReactNode }): ReactNode {
  const [texts, setTexts] = useState<Texts | null>(null);
  const [theme, setThemeState] = useState(firstTheme);
  const load = useCallback((code: string) => {
    void languages[code]?.load().then(
      (loaded) => {
        document.documentElement.lang = loaded.language;
        setTexts(loaded);
      },
      () => setTexts(en),
    );
  }, []);
  useEffect(() => load(firstLanguage()), [load]);
  useEffect(() => {
    if (theme === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = theme;
  }, [theme]);
  const value = useMemo(
    () =>
      texts && {
        texts,
        theme,
        setLanguage: (code: string) => {
          remember("language", code);
          load(code);
        },
        setTheme: (next: Theme) => {
          remember("theme", next);
          setThemeState(next);
        },
      },
    [texts, theme, load],
  );
  return value && <SettingsContext value={value}>{children}</SettingsContext>;
}

export function useSettings(): Settings {
  const settings = use(SettingsContext);
  if (settings === null) throw new Error("no settings: the page is outside of SettingsProvider");
  return settings;
}
export const useTexts = (): Texts => useSettings().texts;
