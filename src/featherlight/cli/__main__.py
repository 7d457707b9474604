from featherlight.cli import main

main()
