"""Chats with a model on the server's page, as a person would, and prints the text that the browser showed.

usage: browser.py URL SCREENSHOT

Prints one JSON object:
  answer     the model's answer, after the last piece
  pieces     how many different lengths of the answer the page showed
  reloaded   the answer, after the page was loaded again
  listed     the conversations that the side bar lists
  errors     the errors that the console reports
"""

import json
import shutil
import sys
import tempfile
import time

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 120  # seconds: a machine that is busy with other tests is slow
QUESTION = "Why is the sky blue?"
ANSWER = '[aria-label="Assistant message with actions"]'


def browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # Chromium refuses to run a sandbox as root, as in a container
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
        "--window-size=1280,900",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Without a path, Selenium would look for a driver to download.
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def text_of(driver, selector):
    # The page replaces its elements while it streams, so one script reads all of them at the same moment.
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join('\\n')", selector
    )


def chat(driver, url, screenshot):
    wait = WebDriverWait(driver, PATIENCE)
    driver.get(url)
    field = wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, "textarea"))
    wait.until(lambda _: field.is_enabled())
    field.send_keys(QUESTION, Keys.ENTER)

    lengths = set()
    answer, since = "", time.monotonic()
    # An answer that has not changed for five seconds is complete.
    while time.monotonic() - since < 5 or not answer:
        text = text_of(driver, ANSWER)
        if text != answer:
            answer, since = text, time.monotonic()
            lengths.add(len(text))
        if time.monotonic() - since > PATIENCE:
            raise TimeoutError(f"no answer; the page shows: {text_of(driver, 'body')}")
        time.sleep(0.02)
    driver.save_screenshot(screenshot)

    driver.refresh()
    wait.until(lambda driver: QUESTION in text_of(driver, '[aria-label="User message with actions"]'))
    wait.until(lambda driver: text_of(driver, ANSWER))
    reloaded = text_of(driver, ANSWER)
    return {"answer": answer, "pieces": len(lengths), "reloaded": reloaded, "listed": text_of(driver, "body")}


def main():
    url, screenshot = sys.argv[1:]
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            seen = chat(driver, url, screenshot)
            log = driver.get_log("browser")
        finally:
            driver.quit()
    seen["errors"] = [entry["message"] for entry in log if entry["level"] == "SEVERE"]
    print(json.dumps(seen))


main()
