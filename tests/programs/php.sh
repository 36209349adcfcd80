# PHP: modules bound to themselves first, arrays, objects, JSON, compression, forks; with its own allocator and without.
# needs: php
php "$HERE/work.php" 2>>served
USE_ZEND_ALLOC=0 php "$HERE/work.php" 2>>served
