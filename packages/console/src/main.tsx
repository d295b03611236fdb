import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { config } from "zod";
import { queryClient } from "./data/api.ts";
import { router } from "./router.tsx";
import { SettingsProvider } from "./texts/texts.tsx";
import "./styles.css";

// zod would make functions of texts, which the content security policy forbids.
config({ jitless: true });

const root = document.querySelector("#root");
if (root !== null)
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={queryClient}>
        <SettingsProvider>
          <RouterProvider router={router} />
        </SettingsProvider>
      </QueryClientProvider>
    </StrictMode>,
  );
